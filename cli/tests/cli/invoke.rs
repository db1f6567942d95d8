//! `epsilon invoke`: what the function receives and what the shell gets.

use crate::{
    listings::function,
    support::{Fake, Ran, Reply, epsilon},
};
use insta::assert_snapshot;
use std::path::Path;

const ID: &str = "0123456789abcdef";

fn fake(call: &str, reply: Reply) -> Fake {
    let info = format!(r#"{{"data":{}}}"#, function("hello", 1));
    Fake::new(vec![("GET /v1/functions/hello", Reply::json(200, &info)), (call, reply)])
}

fn platform_error(status: u16, code: &str) -> Reply {
    let body = format!(
        r#"{{"error":{{"type":"function","code":"{code}","message":"`hello` threw an error","hint":"`epsilon logs hello` shows why","request_id":"{ID}"}}}}"#
    );
    Reply::json(status, &body).header("x-epsilon-request-id", ID)
}

fn run_stdin(fake: &Fake, args: &[&str], stdin: &[u8]) -> Ran {
    let url = format!("http://{}", fake.addr);
    epsilon(args, &[("EPSILON_GATEWAY", &url)], stdin, Path::new("/"))
}

#[test]
fn the_body_and_nothing_else_goes_to_standard_output() {
    let fake = fake("GET /hello", Reply::json(200, r#"{"a":1}"#));
    let ran = fake.run(&["invoke", "hello"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, r#"{"a":1}"#, ""));
}

#[test]
fn method_path_headers_and_data_arrive() {
    let fake = fake("PUT /hello/x?y=1", Reply::json(200, "1"));
    let args =
        ["invoke", "hello", "-X", "PUT", "--path", "x?y=1", "-H", "X-A: b", "-d", r#"{"k":2}"#];
    assert_eq!(fake.run(&args).code, 0);
    let call = &fake.seen()[1];
    assert_eq!(
        (call.header("x-a"), call.header("content-type")),
        (Some("b"), Some("application/json"))
    );
    assert_eq!(call.body, br#"{"k":2}"#);
    assert_eq!(call.header("authorization"), None, "the admin key is not for functions");
}

#[test]
fn data_comes_from_standard_input_and_from_files() {
    let stdin = fake("POST /hello", Reply::json(200, "1"));
    assert_eq!(run_stdin(&stdin, &["invoke", "hello", "-d", "@-"], b"plain words").code, 0);
    assert_eq!(stdin.seen()[1].body, b"plain words");
    assert_eq!(stdin.seen()[1].header("content-type"), Some("text/plain; charset=utf-8"));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big.bin");
    std::fs::write(&path, vec![0xff; 3 << 20]).unwrap();
    let file = fake("POST /hello", Reply::json(200, "1"));
    let data = format!("@{}", path.display());
    assert_eq!(run_stdin(&file, &["invoke", "hello", "-d", &data], b"").code, 0);
    assert_eq!(file.seen()[1].body.len(), 3 << 20);
    assert_eq!(run_stdin(&file, &["invoke", "hello", "-d", "@/nonexistent"], b"").code, 2);
}

#[test]
fn a_platform_error_is_reported_as_one() {
    let fake = fake("GET /hello", platform_error(500, "FUNCTION_ERROR"));
    assert_snapshot!(fake.run(&["invoke", "hello"]).golden());
}

#[test]
fn busy_function_fails_but_its_own_404_does_not() {
    let busy = fake("GET /hello", platform_error(429, "CONCURRENCY_LIMIT"));
    assert_eq!(busy.run(&["invoke", "hello"]).code, 1);
    let own = fake("GET /hello", Reply::json(404, r#"{"error":"no such cart"}"#));
    let ran = own.run(&["invoke", "hello"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, r#"{"error":"no such cart"}"#));
}

#[test]
fn functions_own_500_is_printed_with_exit_code_1() {
    let fake = fake("GET /hello", Reply::json(500, r#"{"sorry":true}"#));
    let ran = fake.run(&["invoke", "hello"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, r#"{"sorry":true}"#));
}

#[test]
fn include_shows_status_headers_and_timing() {
    let reply = Reply::json(200, "{}").header("server-timing", "queue;dur=0.12, exec;dur=3");
    let ran = fake("GET /hello", reply).run(&["invoke", "hello", "-i"]);
    assert_eq!(
        ran.stdout,
        "HTTP/1.1 200 OK\nconnection: close\ncontent-length: 2\ncontent-type: application/json\n\
         server-timing: queue;dur=0.12, exec;dur=3\n\n{}"
    );
    assert!(ran.stderr.starts_with("200 OK in "), "{ran:?}");
    assert!(ran.stderr.ends_with("(queue 0.1 ms, exec 3.0 ms)\n"), "{ran:?}");
}

#[test]
fn json_carries_status_timing_and_body() {
    let reply = Reply::json(200, r#"{"a":1}"#)
        .header("server-timing", "queue;dur=0.12")
        .header("x-epsilon-request-id", ID);
    let ran = fake("GET /hello", reply).run(&["invoke", "hello", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let data = &json;
    assert_eq!((&data["status"], &data["body"]["a"]), (&200.into(), &1.into()));
    assert_eq!((&data["timing_ms"]["queue"], &data["request_id"]), (&0.12.into(), &ID.into()));
}
