//! Limits: too large bodies and heads, too slow callers, more calls than slots.

use crate::{probe, up};
use bytes::Bytes;
use epsilon_e2e::{
    http::Call,
    load::at_once,
    project,
    wait::SOON,
    wire::{Wire, exchange, status},
};
use futures_util::stream;
use serde_json::json;
use std::time::Duration;

const MIB: usize = 1 << 20;

#[tokio::test]
async fn announced_body_over_limit_is_413_before_sending() {
    let up = probe().await;
    let mut wire = Wire::connect(up.public()).await;
    let head = format!("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", 9 * MIB);
    wire.send(head).await.unwrap();
    let answer = wire.rest(SOON).await;
    assert_eq!(status(&answer), 413, "{answer}");
    assert!(answer.contains("BODY_TOO_LARGE"), "{answer}");
}

#[tokio::test]
async fn body_of_unknown_length_is_cut_at_limit() {
    let up = probe().await;
    let pieces = stream::iter((0..9 * 16).map(|_| Bytes::from(vec![b'x'; MIB / 16])));
    let call = Call::new(http::Method::POST, "/echo").header("content-type", "text/plain");
    call.stream(pieces).send(up.public()).await.expect_error(413, "BODY_TOO_LARGE");
    up.get("/echo").await.expect(200);
}

#[tokio::test]
async fn a_body_within_the_limit_arrives_whole() {
    let up = probe().await;
    let text = "x".repeat(7 * MIB);
    let call = Call::post_json("/echo", &json!({ "text": text })).send(up.public()).await;
    let answer = call.expect(200).json();
    assert_eq!(answer["body"]["text"].as_str().map(str::len), Some(7 * MIB));
}

#[tokio::test]
async fn a_head_over_the_limit_is_431() {
    let up = probe().await;
    let long = "x".repeat(MIB);
    let requests = [
        format!("GET /echo HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n"),
        format!(
            "GET /echo HTTP/1.1\r\nhost: a\r\n{}\r\n",
            (0..1500).map(|n| format!("x-{n}: 1\r\n")).collect::<String>()
        ),
    ];
    for request in requests {
        let answer = exchange(up.public(), request).await;
        assert_eq!(status(&answer), 431, "{answer}");
    }
    let answer = exchange(up.public(), format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
    assert!(matches!(status(&answer), 414 | 431), "{answer}");
    up.get("/echo").await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_calls_on_two_slots_get_answers_or_429() {
    let up = up().await;
    up.deploy(&project!("narrow", { "index.js" => r#"
        exports.narrow = {
          config: { memory: "128MiB", maxInstances: 2, timeout: 10_000 },
          func: (req, res) => setTimeout(() => res.send("done"), 20),
        };"# }))
        .await;
    let tally = at_once(up.public(), "/narrow", 1000).await;
    assert_eq!(tally.broken, Vec::<String>::new());
    assert_eq!(tally.refused, 0);
    assert_eq!(tally.of(200) + tally.of(429), 1000, "{tally:?}");
    assert!(tally.of(200) >= 2, "{tally:?}");
    let containers = up.containers(Some("narrow")).await;
    assert!(containers.len() <= 2, "{} instances", containers.len());
    up.get("/narrow").await.expect(200);
}

#[tokio::test]
async fn a_full_function_is_429_with_retry_after() {
    let up = up().await;
    up.deploy(&project!("full", { "index.js" => r#"
        exports.full = {
          config: { memory: "128MiB", maxInstances: 1, timeout: 60_000 },
          func: (req, res) => { res.write("in"); if (req.path === "/free") res.end() },
        };"# }))
        .await;
    let held = Call::get("/full").open(up.public()).await;
    assert_eq!(held.status(), 200);
    up.get("/full").await.expect_error(429, "CONCURRENCY_LIMIT");
    drop(held);
    up.get("/full/free").await.expect(200);
}

#[tokio::test]
async fn slow_callers_take_no_place_and_are_cut_off() {
    let up = probe().await;
    // Silent, within the head, and within the body.
    let mut silent = Wire::connect(up.public()).await;
    let mut in_head = Wire::connect(up.public()).await;
    in_head.send("GET /echo HTTP/1.1\r\nhost: a\r\nx-slow: ").await.unwrap();
    up.get("/echo").await.expect(200);
    let limit = Duration::from_secs(60);
    let (silent, in_head) = tokio::join!(silent.rest(limit), in_head.rest(limit));
    assert!(matches!(status(&silent), 0 | 408), "{silent}");
    assert!(matches!(status(&in_head), 0 | 400 | 408), "{in_head}");
}

#[tokio::test]
async fn slow_uploads_do_not_stop_the_others() {
    let up = probe().await;
    let mut slow = Vec::new();
    for _ in 0..5 {
        let mut wire = Wire::connect(up.public()).await;
        let head = "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n";
        wire.send(format!("{head}the first bytes only")).await.unwrap();
        slow.push(wire);
    }
    for _ in 0..20 {
        up.get("/echo").await.expect(200);
    }
}
