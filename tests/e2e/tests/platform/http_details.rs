//! HTTP details that Node's own server handles, through gateway, agent and wrapper: unusual
//! targets, early hints, many header fields, half-closed connections, functions below their name.

use crate::up;
use epsilon_e2e::{
    project,
    wait::{SOON, until},
    wire::{exchange, status},
};

/// One request, whose connection ends with its answer.
async fn ask(to: std::net::SocketAddr, line: &[u8]) -> String {
    let head = b" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    exchange(to, [b"GET ", line, head].concat()).await
}

fn body(answer: &str) -> &str {
    answer.rsplit("\r\n\r\n").next().unwrap_or_default()
}

#[tokio::test]
async fn a_target_is_what_plain_node_sees() {
    let up = up().await;
    up.deploy(&project!("targets", { "index.js" =>
        "exports.targets = (req, res) => res.send(req.url + ' ' + JSON.stringify(req.query));" }))
        .await;
    for (line, want) in [
        (&b"/targets?filter={\"a\":1}"[..], r#"/?filter={"a":1} {"filter":"{\"a\":1}"}"#),
        (b"/targets/a`b?q=<b>", r#"/a`b?q=<b> {"q":"<b>"}"#),
        (b"/targets/%3C?q=%22", r#"/%3C?q=%22 {"q":"\""}"#),
    ] {
        let answer = ask(up.public(), line).await;
        assert_eq!((status(&answer), body(&answer)), (200, want), "{answer}");
    }
}

#[tokio::test]
async fn early_hints_come_before_the_answer() {
    let up = up().await;
    up.deploy(&project!("early", { "index.js" => "exports.early = (req, res) => {
        res.writeEarlyHints({ link: '</s.css>; rel=preload; as=style' }); setTimeout(() => res.send('page'), 50); };" }))
        .await;
    let answer = ask(up.public(), b"/early").await;
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </s.css>; rel=preload; as=style\r\n\r\n";
    assert!(answer.starts_with(&format!("{hints}HTTP/1.1 200 OK\r\n")), "{answer}");
}

#[tokio::test]
async fn many_header_fields_pass_too_many_are_logged() {
    let up = up().await;
    up.deploy(&project!("cookies", { "index.js" => "exports.cookies = (req, res) => {
        for (let i = 0; i < Number(req.query.n); i++) res.append('set-cookie', `c${i}=1`); res.send('ok'); };" }))
        .await;
    let answer = ask(up.public(), b"/cookies?n=120").await;
    assert_eq!((status(&answer), answer.matches("set-cookie").count()), (200, 120), "{answer}");
    let answer = ask(up.public(), b"/cookies?n=1500").await;
    assert_eq!(status(&answer), 502, "{answer}");
    assert!(!answer.contains("stopped"), "{answer}");
    until("the log contains the reason", SOON, async || {
        let log = up.cli(&["logs", "cookies"]).await.expect(0).stdout;
        let has_reason = log.contains("its answer's head is too large");
        if has_reason { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test]
async fn function_gets_its_path_prefix() {
    let up = up().await;
    up.deploy(&project!("below", { "index.js" =>
        "exports.below = (req, res) => res.send(req.get('x-forwarded-prefix') + req.url);" }))
        .await;
    for (line, want) in [(&b"/below/x"[..], "/below/x"), (b"/below@1/x", "/below@1/x")] {
        assert_eq!(body(&ask(up.public(), line).await), want);
    }
}
