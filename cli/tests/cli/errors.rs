//! Errors and what the person reads.

use crate::{
    listings::function,
    support::{Fake, Reply, epsilon},
};
use insta::assert_snapshot;
use std::{io::Write as _, net::TcpListener, path::Path, thread};

const NOT_FOUND: &str = r#"{"error":{"type":"not_found","code":"FUNCTION_NOT_FOUND",
    "message":"no function is named `helo`","hint":null,"request_id":null}}"#;

fn without_helo() -> Fake {
    Fake::new(vec![
        ("GET /v1/functions/helo/versions", Reply::json(404, NOT_FOUND)),
        ("GET /v1/functions/helo", Reply::json(404, NOT_FOUND)),
        ("DELETE /v1/functions/helo", Reply::json(404, NOT_FOUND)),
        ("POST /v1/functions/helo/rollback", Reply::json(404, NOT_FOUND)),
        ("GET /v1/functions/helo/logs?follow=false", Reply::json(404, NOT_FOUND)),
        (
            "GET /v1/functions",
            Reply::json(200, &format!(r#"{{"data":[{}]}}"#, function("hello", 1))),
        ),
    ])
}

#[test]
fn an_unknown_function_names_the_nearest() {
    let fake = without_helo();
    assert_snapshot!(fake.run(&["versions", "helo"]).golden());
    for verb in ["invoke", "logs", "rollback", "delete"] {
        let ran = fake.run(&[verb, "helo"]);
        assert!(ran.code == 1 && ran.stderr.contains("did you mean `hello`?"), "{verb}: {ran:?}");
    }
    assert_snapshot!("unknown_function_json", fake.run(&["versions", "helo", "--json"]).golden());
}

#[test]
fn an_unknown_vm_names_the_nearest() {
    let error = r#"{"error":{"type":"not_found","code":"VM_NOT_FOUND","message":"no VM is `vm-2`",
        "hint":null,"request_id":null}}"#;
    let vm = r#"{"data":[{"id":"vm-1","state":"ready","memory_bytes":1,"memory_used_bytes":0,
        "calls_active":0,"calls_waiting":0,"instances":[],
        "standing":"ready","since":"2026-11-21T05:00:00Z"}]}"#;
    let fake = Fake::new(vec![
        ("POST /v1/vms/vm-2/drain", Reply::json(404, error)),
        ("GET /v1/vms", Reply::json(200, vm)),
    ]);
    assert_snapshot!(fake.run(&["drain", "vm-2"]).golden());
}

#[test]
fn nothing_listens() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let env = [("EPSILON_GATEWAY", free.as_str())];
    let ran = epsilon(&["functions"], &env, b"", Path::new("/"));
    assert_snapshot!(ran.golden().replace(&free, "ADDR"));
}

#[test]
fn no_key_says_where_it_was_looked_for() {
    let error = r#"{"error":{"type":"unauthorized","code":"UNAUTHORIZED","message":"a key is needed",
        "hint":null,"request_id":null}}"#;
    let fake = Fake::new(vec![("GET /v1/functions", Reply::json(401, error))]);
    assert_snapshot!(fake.run(&["functions"]).golden());
    let ran = fake.run(&["functions", "--key", "wrong"]);
    assert!(ran.stderr.contains("`admin.key` in the data folder"), "{ran:?}");
}

#[test]
fn something_else_listens() {
    let fake = Fake::new(vec![("GET /healthz", Reply::json(404, "<html>nginx</html>"))]);
    assert_snapshot!(fake.run(&["functions"]).golden());
    assert!(fake.seen().is_empty());
}

/// The public listener, where a function may be named like the API's paths.
#[test]
fn no_key_goes_to_the_listener_for_calls() {
    let called = Reply::json(200, r#"{"data":{"status":"ok","store":{"status":"ok"}}}"#);
    let fake = Fake::new(vec![("GET /healthz", called)]);
    for args in [&["functions"][..], &["invoke", "hello"], &["logs", "hello"], &["delete", "x"]] {
        let ran = fake.run(&[args, &["--key", "secret"]].concat());
        assert!(ran.code == 1 && ran.stderr.contains("not the one for calls"), "{ran:?}");
    }
    assert!(fake.seen().is_empty(), "nothing but the probe was sent");
}

/// A first start makes the runtime base, which takes minutes.
#[test]
fn a_gateway_that_starts_says_what_it_does() {
    let health = r#"{"data":{"status":"starting","step":"making the runtime base, Node 24"}}"#;
    let health = Reply::json(503, health).header("x-epsilon-listener", "control");
    let fake = Fake::new(vec![("GET /healthz", health)]);
    assert_snapshot!(fake.run(&["functions"]).golden());
    assert!(fake.seen().is_empty());
}

#[test]
fn no_answer_within_the_timeout() {
    // Accepted by the kernel, never by a program.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap().to_string();
    let env = [("EPSILON_GATEWAY", addr.as_str())];
    let ran = epsilon(&["functions", "--timeout", "200ms"], &env, b"", Path::new("/"));
    assert_snapshot!(ran.golden().replace(&addr, "ADDR"));
}

#[test]
fn the_connection_breaks() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{");
        }
    });
    let env = [("EPSILON_GATEWAY", addr.as_str())];
    let ran = epsilon(&["functions"], &env, b"", Path::new("/"));
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.starts_with(&format!("error: the connection to http://{addr} broke")),
        "{ran:?}"
    );
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for args in [
        &["nonsense"][..],
        &[],
        &["rollback", "hello", "0"],
        &["drain", "VM!"],
        &["functions", "--gateway", "ftp://x"],
        &["functions", "--ca", "/nonexistent.pem"],
        &["logs", "hello", "--request", "short"],
        &["deploy", "/nonexistent/folder"],
        &["up", "--listen", "nowhere"],
        &["up", "--config", "/nonexistent/file"],
    ] {
        let ran = epsilon(args, &[], b"", Path::new("/"));
        assert_eq!(ran.code, 2, "{args:?}: {ran:?}");
        assert!(ran.stdout.is_empty() && !ran.stderr.is_empty(), "{args:?}: {ran:?}");
    }
}
