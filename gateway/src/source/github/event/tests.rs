//! Deliveries as GitHub sends them (its own samples), and others.

use super::*;
use crate::config::defaults::DEFAULTS;
use crate::source::github::allowed_hosts::Hosts;
use crate::source::github::project::Settings;
use epsilon_api::ids::ProjectName;
use serde_json::{Value, json};

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
const COMMIT: &str = "6113728f27ae82c7b1a177c8d03f9e96e0adf246";
const ZEROS: &str = "0000000000000000000000000000000000000000";

fn hook(text: &str) -> Hook {
    let settings: Settings = DEFAULTS.read("github.<project>", text).unwrap();
    let hosts = Hosts::new(vec!["github.com".into(), "api.github.com".into()], Vec::new());
    Hook::new(ProjectName::parse("shop").unwrap(), settings, &hosts).unwrap()
}

/// A webhook of the samples' repository.
fn hello_world(more: &str) -> Hook {
    hook(&format!(r#"{{"repository":"Codertocat/Hello-World","secret_file":"/s"{more}}}"#))
}

fn sample(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/github/{name}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(path).unwrap()
}

/// A minute after the samples' pushes.
fn then() -> Timestamp {
    Timestamp::from_second(1_557_933_657 + 60).unwrap()
}

/// The result in one line.
fn description(read: Result<Event, Malformed>) -> String {
    match read {
        Ok(Event::Ping) => "ping".into(),
        Ok(Event::Push(push)) => format!("{} {} {}", push.reference, push.after, push.commit),
        Ok(Event::Ignored(why)) => format!("ignored: {why}"),
        Err(err) => format!("malformed: {err}"),
    }
}

macro_rules! samples {
    ($($name:ident: $event:expr, $sample:expr, $hook:expr => $want:expr;)*) => {$(
        #[test]
        fn $name() {
            let text = description(read($event, &sample($sample), &$hook, WEEK, then()));
            assert!(text.starts_with(&$want), "{text}");
        }
    )*};
}

samples! {
    a_ping: "ping", "ping", hello_world("") => "ping";
    a_ping_of_a_whole_organization: "ping", "ping-organization", hello_world("") => "ping";
    a_push_to_the_branch: "push", "push-branch", hello_world(r#","branch":"master""#)
        => format!("refs/heads/master {COMMIT} {COMMIT}");
    a_push_to_another_branch: "push", "push-branch", hello_world("")
        => "ignored: branch `main` is deployed, but the push is to `master`";
    a_tag_where_none_is_deployed: "push", "push-tag", hello_world("") => "ignored: tag `simple-tag` does not match";
    a_tag_of_another_pattern: "push", "push-tag", hello_world(r#","tags":"v*""#) => "ignored: tag `simple-tag` does not match";
    a_tag: "push", "push-tag", hello_world(r#","tags":"simple-*""#) => format!("refs/tags/simple-tag {COMMIT} {COMMIT}");
    a_deleted_tag: "push", "push-deleted", hello_world(r#","tags":"*""#) => "ignored: `refs/tags/simple-tag` was deleted";
    a_push_to_a_fork: "push", "push-branch", hook(r#"{"repository":"octo/Hello-World","secret_file":"/s"}"#)
        => "ignored: this webhook deploys `octo/Hello-World`, but the push is to `Codertocat/Hello-World`";
    a_fork: "fork", "fork", hello_world("") => "ignored: events `fork` are not handled here";
    a_ping_labelled_as_a_push: "push", "ping", hello_world("") => "malformed: ";
}

/// A push like the sample's, with these fields replaced.
fn push_with(fields: &Value) -> Vec<u8> {
    let mut payload: Value = serde_json::from_slice(&sample("push-branch")).unwrap();
    payload["ref"] = "refs/heads/main".into();
    for (name, value) in fields.as_object().unwrap() {
        match name.strip_prefix("repository.") {
            Some(name) => payload["repository"][name] = value.clone(),
            None => payload[name] = value.clone(),
        }
    }
    serde_json::to_vec(&payload).unwrap()
}

macro_rules! pushes {
    ($($name:ident: $fields:tt => $want:expr;)*) => {$(
        #[test]
        fn $name() {
            let hook = hello_world(r#","tags":"*""#);
            let text = description(read("push", &push_with(&json!($fields)), &hook, WEEK, then()));
            assert!(text.starts_with($want), "{text}");
        }
    )*};
}

pushes! {
    names_of_repositories_know_no_case: {"repository.full_name": "CODERTOCAT/hello-world"} => "refs/heads/main";
    a_deleted_branch: {"deleted": true, "after": ZEROS, "head_commit": null} => "ignored: `refs/heads/main` was deleted";
    zeros_without_a_word: {"after": ZEROS} => "ignored: `refs/heads/main` was deleted";
    a_note: {"ref": "refs/notes/commits"} => "ignored: `refs/notes/commits` is neither";
    an_annotated_tag_points_at_a_commit: {"ref": "refs/tags/v1", "after": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}
        => "refs/tags/v1 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 6113728f";
    without_a_head: {"head_commit": null} => "refs/heads/main 6113728f27ae82c7b1a177c8d03f9e96e0adf246 6113728f";
    a_week_old: {"repository.pushed_at": 1_557_328_916} => "ignored: the push is older than 7days";
    almost_a_week_old: {"repository.pushed_at": 1_557_328_917} => "refs/heads/main";
    from_tomorrow: {"repository.pushed_at": 1_558_020_000} => "refs/heads/main";
    a_time_as_text: {"repository.pushed_at": "2019-05-01T00:00:00Z"} => "ignored: the push is older";
    a_time_of_nonsense: {"repository.pushed_at": {"a": 1}} => "refs/heads/main";
    no_commit: {"after": "main"} => "malformed: the payload of `push` cannot be read: `after` is not a commit id";
    an_option_as_commit: {"after": "--upload-pack=id"} => "malformed: ";
    half_a_commit: {"after": "6113728f"} => "malformed: ";
    a_tag_that_is_a_pattern: {"ref": "refs/tags/*"} => "malformed: the payload of `push` cannot be read: `ref` is not a valid tag name";
    a_tag_that_is_a_refspec: {"ref": "refs/tags/a:refs/heads/main"} => "malformed: ";
    a_tag_with_a_line_break: {"ref": "refs/tags/a\nb"} => "malformed: ";
    numbers_for_text: {"ref": 7} => "malformed: ";
    no_repository: {"repository": null} => "malformed: ";
}

#[test]
fn invalid_json_is_reported() {
    let nested = "[".repeat(100_000);
    let bodies: [&[u8]; 4] = [b"", b"{", b"\xff\xfe", nested.as_bytes()];
    for body in bodies {
        let text = description(read("push", body, &hello_world(""), WEEK, then()));
        assert!(text.starts_with("malformed: "), "{text}");
    }
}

#[test]
fn words_for_people_hold_no_control_characters() {
    let text = description(read("no\u{1b}[31msuch", b"{}", &hello_world(""), WEEK, then()));
    assert_eq!(text, "ignored: events `no[31msuch` are not handled here; only `push` is");
}

#[test]
fn names_that_git_takes() {
    for (name, want) in [
        ("main", true),
        ("feature/a-b_c.d", true),
        ("käse", true),
        ("v1.0", true),
        ("", false),
        ("-x", false),
        ("a..b", false),
        ("a b", false),
        ("a~1", false),
        ("a^", false),
        ("a:b", false),
        ("a?", false),
        ("a*", false),
        ("a[", false),
        ("a\\b", false),
        ("a\u{7f}", false),
        ("@", false),
        ("a@{1}", false),
        ("/a", false),
        ("a/", false),
        ("a//b", false),
        ("a/.b", false),
        ("a.lock", false),
        ("a.lock/b", false),
        ("a.", false),
        (&*"x".repeat(256), false),
    ] {
        assert_eq!(is_ref_name(name), want, "{name}");
    }
}
