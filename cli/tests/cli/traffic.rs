//! Calls split among versions, as people set and see it.

use crate::{
    listings::function,
    support::{Fake, Reply},
};
use insta::assert_snapshot;
use serde_json::{Value, json};

const SPLIT: &str = r#"{"data":{"function":"pay","stable":3,"shares":[
    {"version":3,"percent":90,"url":"http://ADDR/pay@3","calls":1803,"failed":2},
    {"version":4,"percent":10,"url":"http://ADDR/pay@4","calls":197,"failed":11}],
    "split":{"since":"2026-11-21T10:11:12Z","sticky":"header:x-user","abort_above_percent":7.5,
    "abort_window_ms":90000,"abort_min_calls":50},"aborted":null}}"#;

const ABORTED: &str =
    r#"{"at":"2026-11-21T10:13:00Z","version":4,"calls":61,"failed":7,"limit":5.0}"#;

#[test]
fn a_split_is_shown() {
    let fake = Fake::new(vec![("GET /v1/functions/pay/traffic", Reply::json(200, SPLIT))]);
    assert_snapshot!(fake.run(&["traffic", "pay"]).golden());
    let shown: Value =
        serde_json::from_str(&fake.run(&["traffic", "pay", "--json"]).stdout).unwrap();
    assert_eq!(shown["shares"][1]["failed"], 11);
}

#[test]
fn a_split_that_ended_by_itself_says_why() {
    let body = format!(
        r#"{{"data":{{"function":"pay","stable":3,"shares":[{{"version":3,"percent":100,
        "url":"http://ADDR/pay@3","calls":0,"failed":0}}],"split":null,"aborted":{ABORTED}}}}}"#
    );
    let fake = Fake::new(vec![("GET /v1/functions/pay/traffic", Reply::json(200, &body))]);
    assert_snapshot!(fake.run(&["traffic", "pay"]).golden());
}

#[test]
fn a_split_is_sent_as_typed() {
    let fake = Fake::new(vec![("POST /v1/functions/pay/traffic", Reply::json(200, SPLIT))]);
    for typed in [
        &["traffic", "pay", "3=90", "4=10%"][..],
        &["traffic", "pay", "3=90", "4=10", "--sticky", "cookie", "--abort-above", "0.5%"],
        &["traffic", "pay", "3=50", "4=50", "--stable", "4", "--window", "30s", "--min-calls", "5"],
    ] {
        assert_eq!(fake.run(typed).code, 0, "{typed:?}");
    }
    let seen: Vec<Value> =
        fake.seen().iter().map(|seen| serde_json::from_slice(&seen.body).unwrap()).collect();
    let shares = json!([{"version": 3, "percent": 90}, {"version": 4, "percent": 10}]);
    assert_eq!(seen[0]["shares"], shares);
    assert_eq!((&seen[0]["sticky"], &seen[0]["stable"]), (&Value::Null, &Value::Null));
    assert_eq!(
        (&seen[1]["sticky"], &seen[1]["abort_above_percent"]),
        (&json!("cookie"), &json!(0.5))
    );
    assert_eq!((&seen[2]["stable"], &seen[2]["abort_window_ms"]), (&json!(4), &json!(30_000)));
    assert_eq!(seen[2]["abort_min_calls"], 5);
}

#[test]
fn what_cannot_be_a_share_is_wrong_usage() {
    let fake = Fake::new(Vec::new());
    assert_snapshot!(fake.run(&["traffic", "pay", "3:90"]).golden());
    for typed in [
        &["traffic", "pay", "3=101"][..],
        &["traffic", "pay", "3=90", "4=10", "--sticky", "ip"],
        &["traffic", "pay", "3=90", "4=10", "--abort-above", "many"],
        &["traffic", "pay", "--sticky", "cookie"],
    ] {
        assert_eq!(fake.run(typed).code, 2, "{typed:?}");
    }
}

#[test]
fn promoting_says_what_serves() {
    let reply = Reply::json(200, &format!(r#"{{"data":{}}}"#, function("pay", 4)));
    let fake = Fake::new(vec![("POST /v1/functions/pay/promote", reply)]);
    assert_snapshot!(fake.run(&["promote", "pay"]).golden());
    fake.run(&["promote", "pay", "4"]);
    let bodies: Vec<_> = fake.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies, [&br#"{"version":null}"#[..], br#"{"version":4}"#]);
}

#[test]
fn lists_show_splits_and_those_that_ended_by_themselves() {
    let shares = r#""shares":[{"version":3,"percent":90},{"version":4,"percent":10}],"instances""#;
    let split = function("pay", 3).replace(r#""instances""#, shares);
    let aborted = format!(r#""aborted":{ABORTED},"instances""#);
    let back = function("ship", 3).replace(r#""instances""#, &aborted);
    let body = format!(r#"{{"data":[{split},{back}]}}"#);
    let fake = Fake::new(vec![("GET /v1/functions", Reply::json(200, &body))]);
    assert_snapshot!(fake.run(&["functions"]).golden());

    let version = |number: u32, active: bool, percent: u8| {
        format!(
            r#"{{"version":{number},"active":{active},"percent":{percent},"image":"epsilon/pay:{number}",
            "url":"http://ADDR/pay@{number}","digest":"sha256:ab","deployment":"d-0123456789abcdef",
            "created_at":"2026-11-21T10:11:12Z","spec":{}}}"#,
            crate::listings::SPEC
        )
    };
    let body = format!(r#"{{"data":[{},{}]}}"#, version(4, false, 10), version(3, true, 90));
    let fake = Fake::new(vec![("GET /v1/functions/pay/versions", Reply::json(200, &body))]);
    assert_snapshot!("versions_of_a_split", fake.run(&["versions", "pay"]).golden());
}

#[test]
fn a_version_is_invoked_by_its_own_address() {
    let versions = |addr: &str| {
        format!(
            r#"{{"data":[{{"version":3,"active":true,"image":"i","url":"http://{addr}/pay@3",
            "digest":"sha256:ab","deployment":"d-0123456789abcdef",
            "created_at":"2026-11-21T10:11:12Z","spec":{}}}]}}"#,
            crate::listings::SPEC
        )
    };
    let script = vec![
        ("GET /v1/functions/pay/versions", Reply::json(200, &versions("ADDR"))),
        ("GET /pay@3/x", Reply::json(200, r#""three""#)),
    ];
    let fake = Fake::new(script);
    let ran = fake.run(&["invoke", "pay@3", "--path", "/x"]);
    assert_eq!((ran.code, ran.stdout.trim()), (0, r#""three""#), "{}", ran.stderr);
    let ran = fake.run(&["invoke", "pay@9"]);
    assert!(ran.code == 1 && ran.stderr.contains("no version 9"), "{}", ran.stderr);
    assert_eq!(fake.run(&["invoke", "pay@x"]).code, 2);
}
