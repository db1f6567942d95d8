//! `epsilon logs`.

use crate::support::{Fake, Reply};
use insta::assert_snapshot;

fn record(ms: u32, level: &str, id: &str, message: &str) -> String {
    let call = if id.is_empty() { String::new() } else { format!(r#""request_id":"{id}","#) };
    format!(
        r#"{{"time":"2026-11-21T10:11:12.{ms:03}Z","level":"{level}","function":"hello","version":3,"instance":"0123456789ab",{call}"message":"{message}"}}"#
    )
}

#[test]
fn lines_carry_time_level_version_and_call() {
    let lines = [
        record(1, "info", "", "loading"),
        record(2, "debug", "call-0001", "sum is 3"),
        record(3, "warn", "call-0001", "slow"),
        record(4, "error", "call-0002", "Error: no\\n    at pay (/app/index.js:3:9)"),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let fake =
        Fake::new(vec![("GET /v1/functions/hello/logs?follow=false", Reply::ndjson(&lines))]);
    assert_snapshot!(fake.run(&["logs", "hello"]).golden());
    let ran = fake.run(&["logs", "hello", "--json"]);
    assert_eq!(ran.stdout, lines.join("\n") + "\n");
}

#[test]
fn what_is_wanted_is_asked_for() {
    let line = "GET /v1/functions/hello/logs?follow=false&request_id=call-0001&tail=5";
    let fake = Fake::new(vec![(line, Reply::ndjson(&[]))]);
    assert_eq!(fake.run(&["logs", "hello", "--request", "call-0001", "--tail", "5"]).code, 0);
}

/// A gateway that restarts ends the stream; the kept lines come again with the new ones, and each is
/// shown once. The script ends with "no such function", which ends the following.
#[test]
fn follow_goes_on_after_the_gateway_came_back() {
    let (a, b, c) =
        (record(1, "info", "", "a"), record(2, "info", "", "b"), record(2, "info", "", "c"));
    let gone = r#"{"error":{"type":"not_found","code":"FUNCTION_NOT_FOUND",
        "message":"no function is named `hello`","hint":null,"request_id":null}}"#;
    let line = "GET /v1/functions/hello/logs?follow=true";
    let fake = Fake::new(vec![
        (line, Reply::ndjson(&[&a, &b])),
        (line, Reply::ndjson(&[&a, &b, &c])),
        (line, Reply::json(404, gone)),
        ("GET /v1/functions", Reply::json(200, r#"{"data":[]}"#)),
    ]);
    let ran = fake.run(&["logs", "hello", "--follow", "--json"]);
    assert_eq!(ran.stdout, [a, b, c, String::new()].join("\n"));
    assert_eq!(ran.code, 1);
}
