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
fn options_become_the_query() {
    let line = "GET /v1/functions/hello/logs?follow=false&request_id=call-0001&tail=5";
    let fake = Fake::new(vec![(line, Reply::ndjson(&[]))]);
    assert_eq!(fake.run(&["logs", "hello", "--request", "call-0001", "--tail", "5"]).code, 0);
}

/// As a gateway returns it: with its VM, and its position in that VM's log.
fn placed(record: &str, vm: &str, offset: u32) -> String {
    let record = record.strip_suffix('}').unwrap();
    format!(r#"{record},"vm":"{vm}","position":"1796000000-{offset}"}}"#)
}

/// Code can write any time, and lines of several instances are not in time order.
#[test]
fn all_lines_are_shown_whatever_their_time_is() {
    let lines = [
        placed(&record(9, "info", "", "of one instance"), "vm-1", 10),
        placed(&record(1, "info", "", "of another"), "vm-1", 20),
        placed(&record(2, "info", "", "forged").replace("2026", "2099"), "vm-1", 30),
        placed(&record(3, "info", "", "hidden before"), "vm-1", 40),
        placed(&record(3, "info", "", "hidden before"), "vm-1", 50),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let fake =
        Fake::new(vec![("GET /v1/functions/hello/logs?follow=false", Reply::ndjson(&lines))]);
    let ran = fake.run(&["logs", "hello", "--json"]);
    assert_eq!(ran.stdout, lines.join("\n") + "\n");
    assert_eq!(fake.run(&["logs", "hello"]).stdout.lines().count(), lines.len());
}

/// A gateway that restarts ends the stream; the lines after the last one of each VM are requested.
/// The script ends with "no such function", which ends the following.
#[test]
fn follow_continues_after_the_gateway_came_back() {
    let a = placed(&record(1, "info", "", "a"), "vm-1", 10);
    let b = placed(&record(2, "info", "", "b"), "vm-2", 10);
    let c = placed(&record(2, "info", "", "c"), "vm-1", 20);
    let d = placed(&record(1, "info", "", "d"), "vm-2", 20);
    let gone = r#"{"error":{"type":"not_found","code":"FUNCTION_NOT_FOUND",
        "message":"no function is named `hello`","hint":null,"request_id":null}}"#;
    let line = |after: &str| format!("GET /v1/functions/hello/logs?follow=true{after}");
    let (first, then, last) = (
        line("&tail=2"),
        line("&tail=2&after=vm-1%3A1796000000-20&after=vm-2%3A1796000000-10"),
        line("&tail=2&after=vm-1%3A1796000000-20&after=vm-2%3A1796000000-20"),
    );
    let fake = Fake::new(vec![
        (&first, Reply::ndjson(&[&a, &b, &c])),
        (&then, Reply::ndjson(&[&d])),
        (&last, Reply::json(404, gone)),
        ("GET /v1/functions", Reply::json(200, r#"{"data":[]}"#)),
    ]);
    let ran = fake.run(&["logs", "hello", "--follow", "--tail", "2", "--json"]);
    assert_eq!(ran.stdout, [a, b, c, d, String::new()].join("\n"));
    assert_eq!(ran.code, 1);
}

/// What code writes must not control the terminal: it cannot overwrite its prefix, hide text or
/// turn it around.
#[test]
fn control_characters_are_shown_and_not_obeyed() {
    for (written, shown) in [
        (r"ok\rhidden", r"ok\rhidden"),
        (r"abc\b\b\bxyz", r"abc\u{8}\u{8}\u{8}xyz"),
        (r"\u001b]0;title\u0007text", r"\u{1b}]0;title\u{7}text"),
        (r"\u001b[2Jcleared", r"\u{1b}[2Jcleared"),
        (r"\u009b2Jcleared", r"\u{9b}2Jcleared"),
        (r"\u202etxt.exe\u2066", r"\u{202e}txt.exe\u{2066}"),
        (r"\u007f\u0000", r"\u{7f}\u{0}"),
        (r"\u001b[31mred\u001b[0m", "red"), // the text says the same without colours
        (r"tab\there, ümläute, 日本, 🦀", "tab\there, ümläute, 日本, 🦀"),
        (r"two\nlines", "two\n    lines"),
    ] {
        let line = record(1, "info", "", written);
        let line = [line.as_str()];
        let fake =
            Fake::new(vec![("GET /v1/functions/hello/logs?follow=false", Reply::ndjson(&line))]);
        let text = fake.run(&["logs", "hello"]).stdout;
        assert_eq!(text.split_once("-  ").unwrap().1, format!("{shown}\n"));
        let exact = serde_json::from_str::<serde_json::Value>(
            &fake.run(&["logs", "hello", "--json"]).stdout,
        );
        assert_eq!(exact.unwrap(), serde_json::from_str::<serde_json::Value>(line[0]).unwrap());
    }
}
