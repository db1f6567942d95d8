//! Splitting calls among versions: set, shown, promoted, aborted, stored; versions called by their
//! own address.

use crate::{
    agent::Agent,
    fake::{FakeVm, answer, ok},
    world::{TEST_TIMEOUT, World, eventually, read},
};
use epsilon_api::{admin::DeployEvent, body};
use epsilon_gateway::config::Settings;
use epsilon_store::testing::Postgres;
use http::{Method, Request, Response};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Instant};

const TRAFFIC: &str = "/v1/functions/pay/traffic";

/// Answers with the version of the call. Version 4 fails when the path says so.
fn says_its_version(vm: &Arc<FakeVm>) {
    vm.script("pay", |call| async move {
        let version = call.version.number.get();
        if version == 4 && call.request.uri().path() == "/fail" {
            let mut response = Response::new(body::full("broken"));
            *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
            return Ok(answer(response));
        }
        ok(version.to_string())
    });
}

/// `pay` at version 4, with all four versions stored.
async fn world() -> World {
    let world = World::with(&["pay"]).await;
    says_its_version(&world.vm);
    for digest in ["2", "3", "4"] {
        world.deploy("shop", &[("pay", digest)]).await;
    }
    assert_eq!(world.get("/pay").await.body, "4");
    world
}

async fn split(world: &World, text: &str) -> Value {
    let reply = world.ask(Method::POST, TRAFFIC, text).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()["data"].clone()
}

async fn traffic(world: &World) -> Value {
    world.ask(Method::GET, TRAFFIC, "").await.json()["data"].clone()
}

const NINETY_TEN: &str =
    r#"{"shares":[{"version":3,"percent":90},{"version":4,"percent":10}],"abort_min_calls":10}"#;

/// Number of answers of each version.
async fn counts(world: &World, calls: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..calls {
        let reply = world.get("/pay").await;
        assert_eq!(reply.status, 200, "{reply:?}");
        *counts.entry(reply.body).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn calls_are_shared_and_it_is_shown() {
    let world = world().await;
    let set = split(&world, NINETY_TEN).await;
    assert_eq!((&set["stable"], &set["split"]["abort_min_calls"]), (&json!(3), &json!(10)));
    let counts = counts(&world, 100).await;
    assert!((88..=92).contains(&counts["3"]), "{counts:?}");

    let shown = traffic(&world).await;
    let shares: Vec<_> = shown["shares"].as_array().unwrap().iter().collect();
    for (share, version, percent) in [(shares[0], 3, 90), (shares[1], 4, 10)] {
        assert_eq!((&share["version"], &share["percent"]), (&json!(version), &json!(percent)));
        assert_eq!(share["calls"], json!(counts[&version.to_string()]));
        let url = share["url"].as_str().unwrap();
        assert!(url.ends_with(&format!("/pay@{version}")), "{url}");
    }
    let function = world.ask(Method::GET, "/v1/functions/pay", "").await.json()["data"].clone();
    assert_eq!((&function["active_version"], &function["shares"]), (&json!(3), &set_shares()));
    let versions = world.ask(Method::GET, "/v1/functions/pay/versions", "").await.json();
    let percents: Vec<_> = (0..4).map(|n| versions["data"][n]["percent"].clone()).collect();
    assert_eq!(percents, [json!(10), json!(90), Value::Null, Value::Null]);
    let metrics = world.metrics();
    for line in [
        r#"epsilon_traffic_share_percent{function="pay",version="4"} 10"#,
        &format!(
            r#"epsilon_traffic_calls_total{{function="pay",outcome="ok",version="3"}} {}"#,
            counts["3"]
        ),
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

fn set_shares() -> Value {
    json!([{"version": 3, "percent": 90}, {"version": 4, "percent": 10}])
}

#[tokio::test]
async fn versions_are_started_before_they_get_calls() {
    let world = world().await;
    world.vm.ready.lock().unwrap().clear();
    world.vm.broken.lock().unwrap().insert("pay".into(), "Error: no key".into());
    let reply = world.ask(Method::POST, TRAFFIC, NINETY_TEN).await;
    assert_eq!((reply.status.as_u16(), &*reply.code()), (502, "FUNCTION_INIT_FAILED"));
    assert!(reply.body.contains("no key"), "its developer reads why: {}", reply.body);
    assert_eq!(world.vm.ready(), ["pay@3"]);
    assert_eq!(counts(&world, 20).await, BTreeMap::from([("4".to_owned(), 20)]));
    assert_eq!(
        world.vm.retired().last().map(String::as_str),
        Some("pay@3"),
        "it was retired again"
    );

    world.vm.broken.lock().unwrap().clear();
    world.vm.ready.lock().unwrap().clear();
    split(&world, NINETY_TEN).await;
    assert_eq!(world.vm.ready(), ["pay@3"], "version 4 is already active");
}

#[tokio::test]
async fn promoting_gives_all_calls_to_one_version() {
    let world = world().await;
    split(&world, NINETY_TEN).await;
    world.vm.retired.lock().unwrap().clear();
    let reply = world.ask(Method::POST, "/v1/functions/pay/promote", "").await;
    assert_eq!(reply.json()["data"]["active_version"], 4, "{reply:?}");
    assert_eq!(counts(&world, 20).await, BTreeMap::from([("4".to_owned(), 20)]));
    assert_eq!(world.vm.retired(), ["pay@3"]);
    assert_eq!(traffic(&world).await["split"], Value::Null);
    assert!(!world.metrics().contains("epsilon_traffic_share_percent{"), "series end with it");

    let reply = world.ask(Method::POST, "/v1/functions/pay/promote", "").await;
    assert_eq!((reply.status.as_u16(), &*reply.code()), (409, "NOTHING_TO_PROMOTE"));
    let reply = world.ask(Method::POST, "/v1/functions/pay/promote", r#"{"version":2}"#).await;
    assert_eq!(reply.json()["data"]["active_version"], 2);
    assert_eq!(world.get("/pay").await.body, "2");
}

#[tokio::test]
async fn of_several_candidates_the_one_to_promote_is_named() {
    let world = world().await;
    let three = r#"{"shares":[{"version":2,"percent":80},{"version":3,"percent":10},
        {"version":4,"percent":10}]}"#;
    split(&world, three).await;
    let reply = world.ask(Method::POST, "/v1/functions/pay/promote", "").await;
    assert_eq!((reply.status.as_u16(), &*reply.code()), (409, "PROMOTE_WHICH"));
    let reply = world.ask(Method::POST, "/v1/functions/pay/promote", r#"{"version":3}"#).await;
    assert_eq!(reply.json()["data"]["active_version"], 3);
}

#[tokio::test]
async fn a_failing_version_ends_its_split() {
    let world = world().await;
    let half = r#"{"shares":[{"version":3,"percent":50},{"version":4,"percent":50}],"abort_min_calls":10}"#;
    assert_eq!(
        split(&world, half).await["stable"],
        3,
        "with equal shares the older version is stable"
    );
    world.vm.retired.lock().unwrap().clear();
    let began = Instant::now();
    while !traffic(&world).await["aborted"].is_object() {
        world.get("/pay/fail").await;
        assert!(began.elapsed() < TEST_TIMEOUT, "{}", traffic(&world).await);
    }
    for _ in 0..50 {
        let reply = world.get("/pay/fail").await;
        assert_eq!(
            (reply.status.as_u16(), &*reply.body),
            (200, "3"),
            "the stable version has no calls"
        );
    }
    let why = traffic(&world).await["aborted"].clone();
    assert_eq!((&why["version"], &why["limit"]), (&json!(4), &json!(5.0)));
    assert!(why["calls"].as_u64().unwrap() >= 10, "{why}");
    eventually(vec!["pay@4".to_owned()], || world.vm.retired()).await;
    assert!(world.metrics().contains("epsilon_splits_aborted_total 1"));

    let world = world.restarted().await;
    says_its_version(&world.vm);
    assert_eq!(traffic(&world).await["aborted"], why, "the reason is stored");
    assert_eq!(world.get("/pay").await.body, "3");
    let list = world.ask(Method::GET, "/v1/functions", "").await.json();
    assert_eq!(list["data"][0]["aborted"], why);
    split(&world, NINETY_TEN).await;
    assert_eq!(traffic(&world).await["aborted"], Value::Null, "a new split has no old reason");
}

#[tokio::test]
async fn a_split_survives_a_restart() {
    let world = world().await;
    split(&world, r#"{"shares":[{"version":3,"percent":50},{"version":4,"percent":50}],"sticky":"header:X-User"}"#).await;
    let answers = async |world: &World| {
        let mut all = String::new();
        for n in 0..40 {
            let request = Request::get("/pay").header("x-user", format!("user-{n}"));
            let request = request.body(body::empty()).unwrap();
            all += &crate::world::read(world.send(request).await).await.body;
        }
        all
    };
    let before = answers(&world).await;
    assert!(before.contains('3') && before.contains('4'), "{before}");
    let world = world.restarted().await;
    says_its_version(&world.vm);
    assert_eq!(answers(&world).await, before, "each user keeps its version");
    assert_eq!(traffic(&world).await["split"]["sticky"], "header:x-user");
}

#[tokio::test]
async fn a_cookie_is_set_once_and_keeps_its_caller() {
    let world = world().await;
    split(
        &world,
        r#"{"shares":[{"version":3,"percent":50},{"version":4,"percent":50}],"sticky":"cookie"}"#,
    )
    .await;
    let first = world.get("/pay").await;
    let cookie = first.header("set-cookie");
    assert!(cookie.starts_with("epsilon-version-pay=") && cookie.contains("HttpOnly"), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    for _ in 0..10 {
        let request = Request::get("/pay").header("cookie", pair).body(body::empty()).unwrap();
        let reply = crate::world::read(world.send(request).await).await;
        assert_eq!((&reply.body, reply.header("set-cookie")), (&first.body, ""));
    }
    let other = world.get("/pay@3").await;
    assert_eq!(
        (&*other.body, other.header("set-cookie")),
        ("3", ""),
        "who names a version gets it"
    );
}

#[tokio::test]
async fn a_deployment_and_a_rollback_end_a_split() {
    let world = world().await;
    split(&world, NINETY_TEN).await;
    let events = world.deploy("shop", &[("pay", "3")]).await; // what the stable version is made of
    assert!(matches!(events.last(), Some(DeployEvent::Done { .. })), "{events:?}");
    assert!(traffic(&world).await["split"]["since"].is_string(), "nothing changed");

    let events = world.deploy("shop", &[("pay", "5")]).await;
    let is_reported = events.iter().any(|event| {
        matches!(event, DeployEvent::Log { line } if line.contains("the split of `pay` (3=90 4=10) ended"))
    });
    assert!(is_reported, "{events:?}");
    assert_eq!(traffic(&world).await["split"], Value::Null);
    assert_eq!(counts(&world, 10).await, BTreeMap::from([("5".to_owned(), 10)]));

    split(&world, r#"{"shares":[{"version":3,"percent":90},{"version":5,"percent":10}]}"#).await;
    let reply = world.ask(Method::POST, "/v1/functions/pay/rollback", "").await;
    assert_eq!(
        reply.json()["data"]["active_version"],
        3,
        "back to the stable version, not further"
    );
    assert_eq!(traffic(&world).await["split"], Value::Null);
    let reply = world.ask(Method::POST, "/v1/functions/pay/rollback", "").await;
    assert_eq!(reply.json()["data"]["active_version"], 2, "then to the version before");
}

#[tokio::test]
async fn a_deleted_function_takes_its_split_along() {
    let world = world().await;
    split(&world, NINETY_TEN).await;
    world.vm.retired.lock().unwrap().clear();
    world.ask(Method::DELETE, "/v1/functions/pay", "").await;
    let mut retired = world.vm.retired();
    retired.sort();
    assert_eq!(retired, ["pay@3", "pay@4"]);
    assert_eq!(world.get("/pay@3").await.code(), "FUNCTION_NOT_FOUND");
    world.deploy("shop", &[("pay", "9")]).await;
    assert_eq!(traffic(&world).await["split"], Value::Null);
}

#[tokio::test]
async fn each_version_has_an_address_of_its_own() {
    let settings = Settings { domain: Some("fn.example.org".into()), ..Settings::default() };
    let world = World::start(&["pay"], settings).await;
    says_its_version(&world.vm);
    for digest in ["2", "3"] {
        world.deploy("shop", &[("pay", digest)]).await;
    }
    for (path, want) in [("/pay@1", "1"), ("/pay@2/x?y", "2"), ("/pay@3", "3"), ("/pay", "3")] {
        assert_eq!(world.get(path).await.body, want, "{path}");
    }
    let request = Request::get("/").header("host", "pay--v2.fn.example.org");
    let reply = world.send(request.body(body::empty()).unwrap()).await;
    assert_eq!(crate::world::read(reply).await.body, "2");
    for (path, code) in [
        ("/pay@4", "VERSION_NOT_FOUND"),
        ("/pay@4", "VERSION_NOT_FOUND"),
        ("/pay@0", "FUNCTION_NOT_FOUND"),
        ("/ship@1", "FUNCTION_NOT_FOUND"),
    ] {
        let reply = world.get(path).await;
        assert_eq!((reply.status.as_u16(), &*reply.code()), (404, code), "{path}");
    }
    world.deploy("shop", &[("pay", "4")]).await;
    assert_eq!(world.get("/pay@4").await.body, "4", "an active version needs no lookup");
    let metrics = world.metrics();
    assert!(!metrics.contains("epsilon_traffic"), "calls by address are no split: {metrics}");
}

#[tokio::test]
async fn what_makes_no_split_is_refused_with_a_word() {
    let world = world().await;
    let shares = |text: &str| {
        let of = |share: &str| {
            let (version, percent) = share.split_once('=').unwrap();
            format!(r#"{{"version":{version},"percent":{percent}}}"#)
        };
        let shares: Vec<_> = text.split_whitespace().map(of).collect();
        format!(r#"{{"shares":[{}]"#, shares.join(","))
    };
    for (text, rest, status, code, words) in [
        ("3=90 4=11", "}", 422, "INVALID_SHARES", "101 percent"),
        ("3=90 4=9", "}", 422, "INVALID_SHARES", "99 percent"),
        ("3=50 3=50", "}", 422, "INVALID_SHARES", "named twice"),
        ("", "}", 422, "INVALID_SHARES", "0 percent"),
        ("3=90 9=10", "}", 404, "VERSION_NOT_FOUND", "no version 9"),
        ("3=90 4=10", r#","stable":2}"#, 422, "INVALID_SHARES", "stable"),
        ("3=90 0=10", "}", 422, "INVALID_BODY", ""),
        ("3=90 4=300", "}", 422, "INVALID_BODY", ""),
        ("3=90 4=10", r#","sticky":"ip"}"#, 422, "INVALID_BODY", "header:NAME"),
        ("3=90 4=10", r#","abort_above_percent":101}"#, 422, "INVALID_BODY", "between 0 and 100"),
        ("3=90 4=10", r#","abort_window_ms":1}"#, 422, "INVALID_BODY", "1h"),
        ("3=90 4=10", r#","stiky":"cookie"}"#, 422, "UNKNOWN_FIELD", ""),
    ] {
        let reply = world.ask(Method::POST, TRAFFIC, &(shares(text) + rest)).await;
        assert_eq!((reply.status.as_u16(), &*reply.code()), (status, code), "{text} {rest}");
        let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(words), "{text} {rest}: {message}");
    }
    for (method, verb) in [("GET", "traffic"), ("POST", "traffic"), ("POST", "promote")] {
        let path = format!("/v1/functions/missing/{verb}");
        let body = if method == "POST" && verb == "traffic" { NINETY_TEN } else { "" };
        let reply = world.ask(method.parse().unwrap(), &path, body).await;
        assert_eq!((reply.status.as_u16(), &*reply.code()), (404, "FUNCTION_NOT_FOUND"), "{path}");
    }
    assert_eq!(counts(&world, 10).await, BTreeMap::from([("4".to_owned(), 10)]));
    let all = shares("4=100 3=0") + "}";
    assert_eq!(split(&world, &all).await["split"], Value::Null, "all calls to one is no split");
}

#[tokio::test]
async fn a_retired_version_cannot_be_called() {
    let world = World::with(&[]).await;
    says_its_version(&world.vm);
    for digest in ["1", "2"] {
        world.deploy("shop", &[("pay", digest)]).await;
    }
    assert_eq!(world.get("/pay@1").await.body, "1");
    let path = "/v1/functions/pay/versions";
    let serves = world.ask(Method::DELETE, &format!("{path}/2"), "").await;
    assert_eq!((serves.status.as_u16(), &*serves.code()), (409, "VERSION_SERVES"));
    let retired = world.ask(Method::DELETE, &format!("{path}/1"), "").await;
    assert_eq!((retired.status.as_u16(), &retired.json()["data"]["version"]), (200, &1.into()));
    assert_eq!(world.get("/pay@1").await.code(), "VERSION_NOT_FOUND");
    assert!(world.vm.retired().contains(&"pay@1".to_owned()));
    assert_eq!(world.get("/pay").await.body, "2");
    for odd in ["0", "x", "1"] {
        let again = world.ask(Method::DELETE, &format!("{path}/{odd}"), "").await;
        assert!(again.status.is_client_error(), "{again:?}");
    }
}

/// For each value of the setting: the answers to a caller without a key, one with a wrong key, and
/// the operator.
#[tokio::test]
async fn access_to_version_addresses_is_a_setting() {
    use epsilon_gateway::config::VersionAddresses as Setting;
    for (version_addresses, want) in [
        (Setting::Public, ["OK", "OK", "OK"]),
        (Setting::Key, ["UNAUTHORIZED", "UNAUTHORIZED", "OK"]),
        (Setting::Off, ["VERSION_NOT_FOUND"; 3]),
    ] {
        let world = World::start(&[], Settings { version_addresses, ..Settings::default() }).await;
        says_its_version(&world.vm);
        for digest in ["1", "2"] {
            world.deploy("shop", &[("pay", digest)]).await;
        }
        let last = if world.key.ends_with('0') { "1" } else { "0" };
        let wrong = format!("{}{last}", &world.key[..world.key.len() - 1]);
        for (key, want) in [None, Some(&*wrong), Some(&*world.key)].into_iter().zip(want) {
            let mut request = Request::get("/pay@1");
            if let Some(key) = key {
                request = request.header("x-epsilon-key", key);
            }
            let reply = read(world.send(request.body(body::empty()).unwrap()).await).await;
            let got = if reply.status == 200 { "OK".to_owned() } else { reply.code() };
            assert_eq!(got, want, "{version_addresses:?}: {reply:?}");
        }
        assert_eq!(world.get("/pay").await.status, 200);
    }
}

/// Two gateways on one database; the second has not yet received the first one's change.
#[tokio::test]
async fn new_functions_of_other_gateways_are_found_at_once() {
    let url = Postgres::shared().database().await;
    let store = async || epsilon_store::open(&url).await.unwrap();
    let one = World::gateway(store().await, &["pay"], Settings::default()).await;
    let two = World::gateway(store().await, &["pay"], Settings::default()).await;
    let agent = Agent::join("vm-a", &one).await;
    for world in [&one, &two] {
        world.wait_for_standing("vm-a", "ready").await;
    }
    for n in 0..10 {
        let name = format!("new-{n}");
        agent.vm.script(&name, |_| async { ok("here") });
        one.deploy("shop", &[(&name, "1")]).await;
        let reply = two.get(&format!("/{name}")).await;
        assert_eq!((reply.status.as_u16(), &*reply.body), (200, "here"), "{name}");
    }
    for path in ["/missing", "/missing@3", "/__proto__"] {
        assert_eq!(two.get(path).await.code(), "FUNCTION_NOT_FOUND", "{path}");
    }
    // Far more than the limit of waiting requests.
    let many = (0..300).map(|n| two.get(if n % 2 == 0 { "/missing" } else { "/no-one" }));
    for reply in futures_util::future::join_all(many).await {
        assert_eq!(reply.status, 404);
    }
}

#[tokio::test]
async fn gateways_follow_each_others_splits() {
    let url = Postgres::shared().database().await;
    let store = async || epsilon_store::open(&url).await.unwrap();
    let one = World::gateway(store().await, &["pay"], Settings::default()).await;
    let two = World::gateway(store().await, &["pay"], Settings::default()).await;
    let agent = Agent::join("vm-a", &one).await;
    says_its_version(&agent.vm);
    for world in [&one, &two] {
        world.wait_for_standing("vm-a", "ready").await;
    }
    for digest in ["2", "3", "4"] {
        one.deploy("shop", &[("pay", digest)]).await;
    }
    let seen = async |want: &dyn Fn(&Value) -> bool| {
        let began = Instant::now();
        loop {
            let shown = traffic(&two).await;
            if want(&shown) {
                return;
            }
            assert!(began.elapsed() < TEST_TIMEOUT, "{shown}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let half = r#"{"shares":[{"version":3,"percent":50},{"version":4,"percent":50}],"abort_min_calls":10}"#;
    split(&one, half).await;
    seen(&|shown| shown["shares"][1]["percent"] == 50).await;
    let counts = counts(&two, 40).await;
    assert!(counts["3"] >= 15 && counts["4"] >= 15, "{counts:?}");
    let began = Instant::now();
    while !traffic(&one).await["aborted"].is_object() {
        one.get("/pay/fail").await;
        assert!(began.elapsed() < TEST_TIMEOUT);
    }
    seen(&|shown| shown["aborted"]["version"] == 4 && shown["stable"] == 3).await;
    assert_eq!(two.get("/pay").await.body, "3");
}
