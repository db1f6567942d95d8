//! Which version a call goes to: shares over many calls, and callers that stay on their version.

use super::*;
use crate::{observe::metrics::Metrics, routes::Routes, testing};
use epsilon_api::{
    ids::VersionNumber,
    traffic::{self, AbortRule, Rate, Share},
};
use epsilon_store::Traffic;
use jiff::Timestamp;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn v(number: u32) -> VersionNumber {
    VersionNumber::new(number).unwrap()
}

fn shares(text: &str) -> Vec<Share> {
    text.split(' ').map(|share| share.parse().unwrap()).collect()
}

/// Slots of `pay`, whose version 3 had all of them, after these changes.
fn slots(steps: &[&str]) -> Slots {
    let next = |slots: Slots, step: &&str| slots.share(&shares(step)).unwrap();
    steps.iter().fold(Slots::all(v(3)), next)
}

/// The split of `pay` with these slots.
fn split(slots: Slots, sticky: Option<&str>) -> Arc<Split> {
    let stable = testing::version("pay", 3);
    let shares = slots.shares();
    let others = shares.iter().filter(|share| share.version != stable.number);
    let traffic = Traffic {
        function: stable.function.clone(),
        stable: stable.number,
        candidates: others.map(|share| testing::version("pay", share.version.get())).collect(),
        split: traffic::Split {
            slots,
            sticky: sticky.map(|sticky| sticky.parse().unwrap()),
            abort: AbortRule { above: Rate::percent(5), window_ms: 60_000, min_calls: 20 },
        },
        since: Timestamp::UNIX_EPOCH,
        aborted: None,
    };
    let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
    let routes = Routes::new(vec![stable], vec![traffic], metrics);
    let table = routes.table();
    Arc::clone(table.named("pay").unwrap().split().unwrap())
}

fn headers(of: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in of {
        headers.append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    headers
}

fn version(split: &Split, of: &[(&str, &str)]) -> u32 {
    choose(split, &headers(of)).route.version.number.get()
}

/// How often each version was chosen.
fn counts(chosen: impl Iterator<Item = u32>) -> BTreeMap<u32, u32> {
    chosen.fold(BTreeMap::new(), |mut counts, version| {
        *counts.entry(version).or_default() += 1;
        counts
    })
}

#[tokio::test]
async fn shares_hold_over_many_calls_and_any_hundred() {
    let split = split(slots(&["3=90 4=10", "3=60 4=30 5=10"]), None);
    let chosen: Vec<_> = (0..10_000).map(|_| version(&split, &[])).collect();
    let all = counts(chosen.iter().copied());
    for (version, percent) in [(3, 60), (4, 30), (5, 10)] {
        let of = all[&version];
        assert!(of.abs_diff(percent * 100) <= 10, "version {version} got {of} of 10000");
        for hundred in chosen.windows(100) {
            let of = hundred.iter().filter(|one| **one == version).count() as u32;
            assert!(of.abs_diff(percent) <= 4, "version {version} got {of} of 100");
        }
    }
}

/// Callers that alternate must not get one version each.
#[tokio::test]
async fn every_nth_caller_gets_its_shares_too() {
    let split = split(slots(&["3=75 4=25"]), None);
    let chosen: Vec<_> = (0..10_000).map(|_| version(&split, &[])).collect();
    for every in [2, 3, 4, 5, 8, 10, 100] {
        let mine: Vec<_> = chosen.iter().step_by(every).collect();
        let new = mine.iter().filter(|one| ***one == 4).count();
        let percent = 100 * new / mine.len();
        assert!((20..=30).contains(&percent), "each {every}th: {percent} percent");
    }
}

#[tokio::test]
async fn shares_hold_over_ten_thousand_users() {
    let split = split(slots(&["3=90 4=10"]), Some("header:x-user"));
    let users = (0..10_000).map(|n| format!("user-{n}@example.org"));
    let all = counts(users.map(|user| version(&split, &[("x-user", &user)])));
    assert!((900..=1100).contains(&all[&4]), "{all:?}");
}

/// Slots 48, 43, 96 and 95, computed elsewhere: gateways and releases must agree forever.
#[tokio::test]
async fn a_user_has_the_same_slot_on_every_gateway() {
    let (one, two) = (slots(&["3=50 4=50"]), slots(&["3=50 4=50"]));
    let (one, two) = (split(one, Some("header:x-user")), split(two, Some("header:x-user")));
    for (user, want) in [("ada", 3), ("bob", 3), ("eve", 4), ("", 4)] {
        let of = [("x-user", user)];
        assert_eq!((version(&one, &of), version(&two, &of)), (want, want), "{user}");
    }
}

#[tokio::test]
async fn a_caller_without_the_header_gets_its_shares() {
    let split = split(slots(&["3=90 4=10"]), Some("header:x-user"));
    let all = counts((0..1000).map(|_| version(&split, &[("user", "ada")])));
    assert!((90..=110).contains(&all[&4]), "{all:?}");
}

#[tokio::test]
async fn a_caller_without_cookie_gets_one_and_returns() {
    let split = split(slots(&["3=50 4=50"]), Some("cookie"));
    for _ in 0..100 {
        let first = choose(&split, &HeaderMap::new());
        let cookie = first.cookie.unwrap();
        let cookie = cookie.to_str().unwrap();
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        assert_eq!(attributes, "Path=/; Max-Age=604800; HttpOnly; SameSite=Lax");
        assert!(pair.len() <= "epsilon-version-pay=99".len(), "no more than a slot: {pair}");
        let again = choose(&split, &headers(&[("cookie", &format!("a=b; {pair}; c=d"))]));
        assert_eq!(again.route.version.number, first.route.version.number);
        assert!(again.cookie.is_none());
    }
}

/// The slots of 3 are 0 to 49.
macro_rules! cookies {
    ($($name:ident: $cookies:expr => $want:expr;)*) => {$(
        #[tokio::test]
        async fn $name() {
            let split = split(slots(&["3=50 4=50"]), Some("cookie"));
            let of: Vec<_> = $cookies.iter().map(|cookie| ("cookie", *cookie)).collect();
            let chosen = choose(&split, &headers(&of));
            let known = chosen.cookie.is_none().then(|| chosen.route.version.number.get());
            assert_eq!(known, $want);
        }
    )*};
}

cookies! {
    ours_is_read: ["epsilon-version-pay=7"] => Some(3);
    the_last_slot: ["epsilon-version-pay=99"] => Some(4);
    among_others: ["a=1; epsilon-version-pay=60; b"] => Some(4);
    in_the_second_field: ["a=1", "epsilon-version-pay=60"] => Some(4);
    of_another_function: ["epsilon-version-payment=60"] => None;
    beyond_the_last_slot: ["epsilon-version-pay=100"] => None;
    far_beyond: ["epsilon-version-pay=99999999999999999999999"] => None;
    not_a_number: ["epsilon-version-pay=x"] => None;
    a_signed_number: ["epsilon-version-pay=+7"] => None;
    empty: ["epsilon-version-pay="] => None;
    without_a_value: ["epsilon-version-pay"] => None;
    none_at_all: [""] => None;
}

#[tokio::test]
async fn a_failing_version_gets_no_more_calls() {
    let split = split(slots(&["3=50 4=50"]), Some("cookie"));
    let of = [("cookie", "epsilon-version-pay=60")];
    for _ in 0..20 {
        let route = choose(&split, &headers(&of)).route;
        assert_eq!(route.version.number, v(4));
        route.error_window.as_ref().unwrap().ended(500);
    }
    assert_eq!(version(&split, &of), 3);
    assert_eq!(counts((0..100).map(|_| version(&split, &[]))), BTreeMap::from([(3, 100)]));
    assert_eq!(split.breach().unwrap().version, v(4));
}

proptest! {
    #[test]
    fn a_sticky_caller_stays_while_its_share_grows(
        user in "\\PC{1,40}", slot in 0..COUNT, mut percents in proptest::collection::vec(1_u8..100, 1..5),
    ) {
        percents.sort_unstable();
        let steps: Vec<_> = percents.iter().map(|p| format!("3={} 4={p}", 100 - p)).collect();
        let steps: Vec<_> = steps.iter().map(String::as_str).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _inside = runtime.enter();
        let cookie = format!("epsilon-version-pay={slot}");
        let mut user_of = HeaderMap::new();
        user_of.insert("x-user", HeaderValue::from_bytes(user.as_bytes()).unwrap());
        let (mut by_user, mut by_cookie) = (3, 3);
        for n in 1..=steps.len() {
            let now = choose(&split(slots(&steps[..n]), Some("header:x-user")), &user_of);
            let now = now.route.version.number.get();
            prop_assert!(by_user == 3 || now == 4, "{} went back", user);
            by_user = now;
            let now = version(&split(slots(&steps[..n]), Some("cookie")), &[("cookie", &cookie)]);
            prop_assert!(by_cookie == 3 || now == 4, "slot {} went back", slot);
            by_cookie = now;
        }
    }

    #[test]
    fn any_cookie_is_survived(text in "\\PC{0,200}") {
        if let Ok(value) = HeaderValue::from_str(&text) {
            let mut headers = HeaderMap::new();
            headers.insert(COOKIE, value);
            let _ = slot_in_cookie("pay", &headers);
        }
    }
}
