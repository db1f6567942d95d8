//! Headers: the platform's own on every answer, the caller's that must not pass, and requests that
//! break HTTP in ways used for smuggling.

use crate::{probe, run, up};
use epsilon_e2e::{
    http::Call,
    wire::{exchange, status},
};

#[tokio::test]
async fn every_answer_has_request_id_and_server_timing() {
    let up = probe().await;
    let answer = up.get("/echo").await.expect(200);
    assert!(answer.header("x-epsilon-request-id").len() >= 8, "{answer}");
    for part in ["queue;dur=", "exec;dur="] {
        assert!(answer.header("server-timing").contains(part), "{part}: {answer}");
    }
    let refused = up.get("/missing").await;
    assert!(refused.header("x-epsilon-request-id").len() >= 8, "{refused}");
}

#[tokio::test]
async fn a_cold_start_reports_its_phases() {
    let up = up().await;
    let project = epsilon_e2e::project!("cold", { "index.js" => r#"
        exports.cold = {
          config: { memory: "128MiB", idleTimeout: 60_000 },
          func: (req, res) => { res.send("first and last"); setTimeout(() => process.exit(), 10) },
        };"# });
    up.deploy(&project).await;
    // Until the instance that the deployment started is gone, a call may still find it.
    let answer = epsilon_e2e::wait::until("a cold start", epsilon_e2e::wait::SOON, async || {
        let answer = up.get("/cold").await;
        let timing = answer.header("server-timing").to_owned();
        if timing.contains("start;dur=") { Ok(answer) } else { Err(timing) }
    })
    .await;
    let timing = answer.header("server-timing");
    let made = if timing.contains("cell;") { "cell" } else { "create" };
    for phase in [made, "init"] {
        assert!(timing.contains(phase), "{phase}: {timing}");
    }
}

#[tokio::test]
async fn well_formed_request_id_stays_others_replaced() {
    let up = probe().await;
    let call = |id: &str| Call::get("/echo").header("x-epsilon-request-id", id);
    let answer = call("my-call.2026_11").send(up.public()).await.expect(200);
    assert_eq!(answer.header("x-epsilon-request-id"), "my-call.2026_11");
    assert_eq!(answer.json()["headers"]["x-epsilon-request-id"], "my-call.2026_11");
    for bad in ["short", "has space in it", "a;b;c;d;e;f;g", &"x".repeat(65)] {
        let answer = call(bad).send(up.public()).await.expect(200);
        assert_ne!(answer.header("x-epsilon-request-id"), bad);
        assert_ne!(answer.json()["headers"]["x-epsilon-request-id"], bad);
    }
}

#[tokio::test]
async fn platform_headers_cannot_be_forged() {
    let up = probe().await;
    let answer = Call::get("/echo")
        .header("x-epsilon-deadline-ms", "1")
        .header("x-epsilon-outcome", "threw")
        .header("x-epsilon-function", "other")
        .send(up.public())
        .await
        .expect(200);
    let headers = &answer.json()["headers"];
    assert_ne!(headers["x-epsilon-deadline-ms"], "1");
    assert!(headers.get("x-epsilon-function").is_none(), "{headers}");
    assert!(headers.get("x-epsilon-outcome").is_none(), "{headers}");
    // A function cannot send the platform's headers to the caller either.
    let answer = run("res.set('x-epsilon-request-id', 'forged-by-function').send('x')").await;
    assert_ne!(answer.expect(200).header("x-epsilon-request-id"), "forged-by-function");
}

#[tokio::test]
async fn hop_by_hop_headers_end_at_the_gateway() {
    let up = probe().await;
    let answer = exchange(
        up.public(),
        "GET /echo HTTP/1.1\r\nhost: a\r\nconnection: close, x-hop\r\nx-hop: 1\r\nkeep-alive: 5\r\n\
         proxy-authorization: secret\r\nte: gzip\r\nx-end: 1\r\n\r\n",
    )
    .await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(answer.contains(r#""x-end":"1""#), "{answer}");
    for gone in ["x-hop", "keep-alive\":\"5", "proxy-authorization", "gzip"] {
        assert!(!answer.contains(gone), "{gone}: {answer}");
    }
}

#[tokio::test]
async fn forwarded_headers_are_written_by_the_gateway() {
    let up = probe().await;
    let answer = Call::get("/echo")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x_forwarded_for", "7.7.7.7")
        .send(up.public())
        .await
        .expect(200);
    let headers = &answer.json()["headers"];
    assert!(headers.get("x_forwarded_for").is_none(), "{headers}");
    let seen = headers["x-forwarded-for"].as_str().unwrap_or_default();
    assert!(seen.ends_with("127.0.0.1"), "the last hop is the one that is known: {headers}");
}

/// Requests that two servers could read in two ways are refused, and never reach a function.
macro_rules! refused {
    ($($test:ident: $request:expr;)*) => {$(
        #[tokio::test]
        async fn $test() {
            let up = probe().await;
            let request: &str = &$request;
            let answer = exchange(up.public(), request).await;
            assert_eq!(status(&answer), 400, "{request:?}: {answer}");
            assert!(!answer.contains("\"method\""), "it reached the function: {answer}");
            up.get("/echo").await.expect(200);
        }
    )*};
}

refused! {
    two_different_lengths: "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\
        content-length: 4\r\n\r\nabcd";
    length_with_sign: "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc";
    encoding_not_chunked: "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n";
    encoding_on_http_1_0: "POST /echo HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    no_host: "GET /echo HTTP/1.1\r\nconnection: close\r\n\r\n";
    two_hosts: "GET /echo HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n";
    folded_header: "GET /echo HTTP/1.1\r\nhost: a\r\nx: 1\r\n folded\r\n\r\n";
    space_before_colon: "GET /echo HTTP/1.1\r\nhost: a\r\nx : 1\r\n\r\n";
    no_http_at_all: "hello\r\n\r\n";
}

/// Either the chunks decide and the connection ends there, or the request is refused; the body is
/// never taken for another request.
#[tokio::test]
async fn length_plus_encoding_smuggles_no_request() {
    let up = probe().await;
    let answer = exchange(
        up.public(),
        "POST /echo/first HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /echo/smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
    )
    .await;
    assert!(!answer.contains("smuggled"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(matches!(status(&answer), 200 | 400), "{answer}");
    up.get("/echo").await.expect(200);
}

#[tokio::test]
async fn bad_chunks_never_look_like_a_whole_body() {
    let up = probe().await;
    let answer = exchange(
        up.public(),
        "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\
         content-type: text/plain\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    )
    .await;
    assert!(!answer.contains("\"body\":\"abc\""), "{answer}");
    assert!(matches!(status(&answer), 0 | 400), "{answer}");
    up.get("/echo").await.expect(200);
}
