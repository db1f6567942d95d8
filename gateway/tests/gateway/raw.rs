//! Bytes that no client library sends, and callers that are slow, silent or many.

use crate::{
    fake::{self, ok},
    world::{World, eventually, read_until},
};
use epsilon_api::{body, error::VmError, units, vm::Call};
use epsilon_gateway::config::Settings;
use http::Response;
use http_body_util::BodyExt;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// Answers with the header names and the body that the function received, or with the error of the
/// body.
async fn seen(call: Call) -> Result<epsilon_api::vm::Answer, VmError> {
    let function = call.version.function.clone();
    let (head, body) = call.request.into_parts();
    let mut names: Vec<String> =
        head.headers.iter().map(|(k, v)| format!("{k}={}", v.to_str().unwrap())).collect();
    names.sort();
    let body =
        body.collect().await.map_err(|cause| VmError::FunctionCrashed { function, cause })?;
    let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    let text = format!("{} {} | {} | {body}\n", head.method, head.uri, names.join(" "));
    Ok(fake::answer(Response::new(body::full(text))))
}

async fn world() -> World {
    let world = World::with(&["hello"]).await;
    world.vm.script("hello", seen);
    world
}

/// Status line and error code of the first answer.
fn head(answer: &str) -> &str {
    answer.lines().next().unwrap_or("no answer")
}

#[tokio::test]
async fn two_hosts_are_refused() {
    let answer = world()
        .await
        .raw("GET /hello HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n")
        .await;
    assert_eq!(head(&answer), "HTTP/1.1 400 Bad Request");
    assert!(answer.contains(r#""code":"BAD_REQUEST""#), "{answer}");
}

#[tokio::test]
async fn a_host_is_required_except_in_http10() {
    let world = world().await;
    let answer = world.raw("GET /hello HTTP/1.1\r\nconnection: close\r\n\r\n").await;
    assert_eq!(head(&answer), "HTTP/1.1 400 Bad Request");
    let answer = world.raw("GET /hello HTTP/1.0\r\n\r\n").await;
    assert_eq!(head(&answer), "HTTP/1.0 200 OK");
}

#[tokio::test]
async fn a_target_that_disagrees_with_the_host_is_refused() {
    let world = world().await;
    let answer =
        world.raw("GET http://b/hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert_eq!(head(&answer), "HTTP/1.1 400 Bad Request");
    let answer =
        world.raw("GET http://a/hello/x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("GET /x |"), "{answer}");
    let answer =
        world.raw("CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\nconnection: close\r\n\r\n").await;
    assert_eq!(head(&answer), "HTTP/1.1 400 Bad Request");
}

/// `Content-Length` together with chunks: the chunks count, and the rest of the connection is not
/// read as a request.
#[tokio::test]
async fn length_and_transfer_encoding_smuggle_nothing() {
    let world = world().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    world.vm.script("hello", move |call| {
        counted.fetch_add(1, SeqCst);
        seen(call)
    });
    let answer = world
        .raw(
            "POST /hello HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n\
             0\r\n\r\nGET /hello/smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
        )
        .await;
    assert!(!answer.contains("smuggled"), "{answer}");
    assert!(!answer.contains("content-length=6"), "{answer}");
    assert!(calls.load(SeqCst) <= 1);
}

#[tokio::test]
async fn broken_framing_is_refused() {
    let world = world().await;
    for request in [
        "GET /hello HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        "GET /hello HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc",
        "GET /hello HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n",
        "GET /hello HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n",
        "GET /hello HTTP/1.1\r\nhost : a\r\n\r\n",
        "GET /hello HTTP/1.1\r\nhost: a\r\nx: 1\r\n folded\r\n\r\n",
        "GET /hello HTTP/3.7\r\nhost: a\r\n\r\n",
        "GET /hel lo HTTP/1.1\r\nhost: a\r\n\r\n",
        "\u{16}\u{3}\u{1} this is TLS",
    ] {
        let answer = world.raw(request).await;
        assert!(
            answer.starts_with("HTTP/1.1 400") || answer.is_empty(),
            "{request:?} got {answer:?}"
        );
    }
    assert_eq!(world.vm.active(), 0);
}

#[tokio::test]
async fn a_bad_chunk_breaks_the_call_and_nothing_else() {
    let world = world().await;
    for chunks in ["zz\r\nabc\r\n0\r\n\r\n", "3\r\nabcX\r\n0\r\n\r\n", "ffffffffffffffffff\r\nabc"]
    {
        let request = format!(
            "POST /hello HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"
        );
        let answer = world.raw(&request).await;
        assert!(!answer.contains(" 200 "), "{chunks:?} got {answer:?}");
    }
    eventually(0, || world.vm.active()).await;
    assert_eq!(world.get("/hello").await.status, 200);
}

/// Some clients end lines with a bare LF. HTTP allows us to read them; the function receives clean
/// ones.
#[tokio::test]
async fn bare_line_feeds_are_read_and_never_passed_on() {
    let answer =
        world().await.raw("GET /hello HTTP/1.1\nhost: a\nx: 1\nconnection: close\n\n").await;
    assert_eq!(head(&answer), "HTTP/1.1 200 OK");
    assert!(answer.contains(" x=1 "), "{answer}");
}

#[tokio::test]
async fn hop_by_hop_and_platform_headers_do_not_pass() {
    let answer = world()
        .await
        .raw(
            "GET /hello HTTP/1.1\r\nhost: a\r\nconnection: close, x-secret\r\nx-secret: 1\r\n\
             x-forwarded-for: 6.6.6.6\r\nx_forwarded_for: 6.6.6.6\r\nx-epsilon-deadline-ms: 1\r\n\
             te: gzip\r\nproxy-authorization: x\r\nx-mine: 1\r\n\r\n",
        )
        .await;
    let line = answer.lines().find(|line| line.starts_with("GET / |")).unwrap();
    assert_eq!(
        line,
        "GET / | host=a x-forwarded-for=127.0.0.1 x-forwarded-host=a x-forwarded-prefix=/hello x-forwarded-proto=http x-mine=1 | "
    );
}

#[tokio::test]
async fn a_head_over_the_limits_is_431() {
    let mut settings = Settings::default();
    settings.limits.max_header = units::Bytes(8192);
    settings.limits.max_headers = 20;
    let world = World::start(&["hello"], settings).await;
    world.vm.script("hello", seen);
    let long = format!("GET /hello HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(9000));
    assert_eq!(head(&world.raw(&long).await), "HTTP/1.1 431 Request Header Fields Too Large");
    let many: String = (0..30).map(|n| format!("x-{n}: y\r\n")).collect();
    let many = format!("GET /hello HTTP/1.1\r\nhost: a\r\n{many}\r\n");
    assert_eq!(head(&world.raw(&many).await), "HTTP/1.1 431 Request Header Fields Too Large");
}

fn hasty() -> Settings {
    Settings {
        header_timeout: Duration::from_millis(100),
        idle_timeout: Duration::from_millis(100),
        ..Settings::default()
    }
}

#[tokio::test]
async fn silent_slow_and_idle_connections_are_closed() {
    let world = World::start(&["hello"], hasty()).await;
    world.vm.script("hello", seen);
    let began = Instant::now();
    assert_eq!(world.raw("").await, "", "silent");
    let answer = world.raw("GET /hello HTTP/1.1\r\nhost: a\r\nx-half: ").await;
    assert_eq!(head(&answer), "HTTP/1.1 408 Request Timeout", "half a head");
    let answer = world.raw("GET /hello HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "idle after one call");
    assert!(began.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_head_that_trickles_in_is_closed() {
    let world = World::start(&["hello"], hasty()).await;
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    let began = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    stream.write_all(b"GET /hello HTTP/1.1\r\n").await.unwrap();
    while stream.write_all(b"x: y\r\n").await.is_ok() {
        ticks.tick().await;
        assert!(began.elapsed() < crate::world::TEST_TIMEOUT);
    }
}

#[tokio::test]
async fn a_slow_function_is_not_cut_by_connection_limits() {
    let world = World::start(&["slow"], hasty()).await;
    world.vm.script("slow", |_| async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        ok("at last")
    });
    assert_eq!(world.get("/slow").await.body, "at last");
}

#[tokio::test]
async fn one_connection_serves_many_calls_also_pipelined() {
    let world = world().await;
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    let one = "GET /hello/1 HTTP/1.1\r\nhost: a\r\n\r\n";
    let two = "GET /hello/2 HTTP/1.1\r\nhost: a\r\n\r\n";
    stream.write_all(one.as_bytes()).await.unwrap();
    read_until(&mut stream, "GET /1").await;
    stream.write_all([two, one, two].concat().as_bytes()).await.unwrap();
    let mut answers = String::new();
    while answers.matches("HTTP/1.1 200").count() < 3 || answers.matches("GET /2").count() < 2 {
        answers.push_str(&read_until(&mut stream, "\n").await);
    }
    assert!(world.metrics().contains("epsilon_connections 1"));
}
