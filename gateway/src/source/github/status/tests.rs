//! Statuses sent to a scripted GitHub API.

use super::*;
use crate::config::defaults::DEFAULTS;
use crate::source::github::allowed_hosts::Hosts;
use crate::source::github::config::{Config, Settings as All};
use crate::source::github::fake_github::{FakeGithub, TOKEN};
use crate::source::github::project::Settings;
use epsilon_api::{ids::ProjectName, units::Bytes};
use serde_json::json;
use std::collections::BTreeMap;

const COMMIT: &str = "6113728f27ae82c7b1a177c8d03f9e96e0adf246";
const NO_PAUSE: Duration = Duration::from_millis(1);

fn limits() -> Limits {
    let mut all = All::default();
    all.limits.max_payload = Bytes::mib(1);
    Config::new(all, BTreeMap::new()).unwrap().limits
}

fn hook(github: &FakeGithub) -> Hook {
    let settings = github.hook("octo/shop", &json!({"token_file": github.token_file()}));
    let settings: Settings = DEFAULTS.read("github.<project>", &settings.to_string()).unwrap();
    let hosts = Hosts::new(Vec::new(), vec!["127.0.0.1".into()]);
    Hook::new(ProjectName::parse("shop").unwrap(), settings, &hosts).unwrap()
}

fn status(description: &str) -> Status {
    Status {
        commit: COMMIT.into(),
        state: State::Success,
        description: description.into(),
        target: Some("http://shop.example.org/pay".into()),
    }
}

/// The result of sending a status if the API answers so, and the number of requests.
async fn sent(answers: &[(u16, Option<&'static str>)]) -> (Result<(), String>, usize) {
    let github = FakeGithub::start().await;
    github.api_answers(answers);
    let token = Secret::new(TOKEN.to_owned());
    let sent = send(&hook(&github), &token, &status("deployed"), &limits(), NO_PAUSE).await;
    (sent.map_err(|err| err.to_string()), github.statuses().len())
}

#[tokio::test]
async fn a_status_is_sent_as_github_documents() {
    let github = FakeGithub::start().await;
    let token = Secret::new(TOKEN.to_owned());
    send(&hook(&github), &token, &status("deployed"), &limits(), NO_PAUSE).await.unwrap();
    let seen = github.statuses().pop().unwrap();
    assert_eq!(seen.path, format!("/api/v3/repos/octo/shop/statuses/{COMMIT}"));
    assert_eq!(seen.headers["authorization"], format!("Bearer {TOKEN}"));
    assert_eq!(seen.headers["accept"], "application/vnd.github+json");
    assert!(seen.headers.contains_key("user-agent"));
    assert_eq!(
        seen.body,
        json!({
            "state": "success",
            "description": "deployed",
            "context": "epsilon/shop",
            "target_url": "http://shop.example.org/pay",
        })
    );
}

macro_rules! answers {
    ($($name:ident: [$($answer:expr),*] => $want:expr, retry_after $retry_after:expr;)*) => {$(
        #[tokio::test]
        async fn $name() {
            let want: Result<(), &str> = $want;
            assert_eq!(sent(&[$($answer),*]).await, (want.map_err(str::to_owned), $retry_after));
        }
    )*};
}

answers! {
    taken_at_once: [(201, None)] => Ok(()), retry_after 1;
    taken_at_the_second_try: [(502, None), (201, None)] => Ok(()), retry_after 2;
    retry_after_of_github: [(429, Some("0")), (403, Some("0")), (201, None)] => Ok(()), retry_after 3;
    broken_for_good: [(500, None), (500, None), (500, None), (201, None)]
        => Err("GitHub's API answered 500 Internal Server Error"), retry_after 3;
    a_token_that_may_not: [(403, None)] => Err("GitHub's API answered 403 Forbidden"), retry_after 1;
    a_token_that_is_none: [(401, None)] => Err("GitHub's API answered 401 Unauthorized"), retry_after 1;
    no_such_commit: [(422, None)] => Err("GitHub's API answered 422 Unprocessable Entity"), retry_after 1;
    a_redirect_is_not_followed: [(307, None)] => Err("GitHub's API answered 307 Temporary Redirect"), retry_after 1;
}

#[tokio::test]
async fn statuses_to_a_dead_server_are_dropped() {
    let github = FakeGithub::start().await;
    let hook = hook(&github);
    let token = Secret::new(TOKEN.to_owned());
    drop(github);
    let lost = send(&hook, &token, &status("deployed"), &limits(), NO_PAUSE).await.unwrap_err();
    assert!(matches!(lost, SendError::NoAnswer(_)), "{lost}");
    assert!(!format!("{lost:?} {}", Chain(&lost)).contains(TOKEN));
}

#[test]
fn pauses_have_an_end() {
    let answered = |after| SendError::Answered(StatusCode::TOO_MANY_REQUESTS, after);
    let pause = |after: Option<u64>| answered(after.map(Duration::from_secs)).pause(NO_PAUSE);
    assert_eq!(pause(None), Some(NO_PAUSE));
    assert_eq!(pause(Some(7)), Some(Duration::from_secs(7)));
    assert_eq!(pause(Some(86_400)), Some(LONGEST_PAUSE));
}

#[test]
fn descriptions_fit() {
    assert_eq!(shortened("one line\nand another"), "one line");
    assert_eq!(shortened(&"ä".repeat(140)), "ä".repeat(140));
    let cut = shortened(&"ä".repeat(141));
    assert_eq!((cut.chars().count(), cut.ends_with('…')), (140, true));
}
