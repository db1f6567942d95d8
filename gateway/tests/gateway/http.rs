//! HTTP between callers, proxies, gateway and functions: which headers reach a function, and which
//! reach a caller.

use crate::{
    fake::{self, ok},
    world::{World, eventually, read_to_close, read_until},
};
use ::http::{Response, StatusCode, header::LINK};
use epsilon_api::{body, headers::RawTarget};
use epsilon_bootstrap::settings::Section as _;
use epsilon_gateway::config::Settings;
use std::{sync::Arc, time::Duration};
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::Semaphore};

fn settings(text: &str) -> Settings {
    Settings::read(text).unwrap()
}

/// A world whose function `hello` answers with what it receives about its caller.
async fn world_that_echoes(settings: Settings) -> World {
    let world = World::start(&["hello"], settings).await;
    world.vm.script("hello", |call| async move {
        let headers = call.request.headers();
        let one = |name: &str| headers.get(name).map_or("-", |v| v.to_str().unwrap()).to_owned();
        let names = ["for", "proto", "host", "port", "prefix"];
        let seen = names.map(|name| one(&format!("x-forwarded-{name}"))).join(" ");
        assert!(!headers.contains_key("x-real-ip") && !headers.contains_key("forwarded"));
        ok(format!("{} {seen}", call.request.uri()))
    });
    world
}

/// Sends a GET with this head; returns the body of the answer.
async fn ask(world: &World, head: &str) -> String {
    let answer = world.raw(&format!("GET {head}\r\nconnection: close\r\n\r\n")).await;
    answer.rsplit("\r\n").next().unwrap_or_default().to_owned()
}

const FORWARDED: &str = "host: a\r\nx-forwarded-for: 6.6.6.6, 203.0.113.7\r\nx-forwarded-proto: https\r\n\
    x-forwarded-port: 443\r\nx-forwarded-host: shop.example\r\nx-real-ip: 6.6.6.6\r\nforwarded: for=6.6.6.6";

#[tokio::test]
async fn only_a_trusted_proxy_says_who_calls() {
    let request = format!("/hello/x HTTP/1.1\r\n{FORWARDED}");
    let trusting = world_that_echoes(settings(r#"{"trusted_proxies":["127.0.0.0/8"]}"#)).await;
    assert_eq!(ask(&trusting, &request).await, "/x 203.0.113.7 https shop.example 443 /hello");
    let strict = world_that_echoes(settings(r#"{"trusted_proxies":["10.0.0.0/8"]}"#)).await;
    assert_eq!(ask(&strict, &request).await, "/x 127.0.0.1 http a - /hello");
}

#[tokio::test]
async fn only_functions_called_by_path_get_a_prefix() {
    let world = world_that_echoes(settings(r#"{"domain":"fn.example.org"}"#)).await;
    let spoken = "x-forwarded-prefix: /admin";
    for (head, prefix) in [
        (format!("/hello HTTP/1.1\r\nhost: a\r\n{spoken}"), "/hello"),
        (format!("/hello/a/b?c HTTP/1.1\r\nhost: a\r\n{spoken}"), "/hello"),
        (format!("/hello@1/a HTTP/1.1\r\nhost: a\r\n{spoken}"), "/hello@1"),
        (format!("/a HTTP/1.1\r\nhost: hello.fn.example.org\r\n{spoken}"), "-"),
        (format!("/a HTTP/1.1\r\nhost: hello--v1.fn.example.org\r\n{spoken}"), "-"),
    ] {
        let seen = ask(&world, &head).await;
        assert_eq!(seen.rsplit(' ').next().unwrap(), prefix, "{head}");
    }
}

#[tokio::test]
async fn a_shared_origin_drops_origin_wide_headers() {
    let world = World::start(&["hello"], settings(r#"{"domain":"fn.example.org"}"#)).await;
    world.vm.script("hello", |_| async {
        let response = Response::builder()
            .header("service-worker-allowed", "/")
            .header("clear-site-data", "\"*\"")
            .header("alt-svc", "h3=\":443\"")
            .header("strict-transport-security", "max-age=1")
            .header("etag", "1");
        Ok(fake::answer(response.body(body::empty()).unwrap()))
    });
    for (host, own) in [("a", false), ("hello.fn.example.org", true)] {
        let request = format!("GET /hello HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answer = world.raw(&request).await;
        for name in ["service-worker-allowed", "clear-site-data", "alt-svc", "strict-transport"] {
            assert_eq!(answer.contains(name), own, "{name} in {answer}");
        }
        assert!(answer.contains("etag: 1"), "{answer}");
    }
}

/// Bytes inside of a tunnel are not read as a request.
#[tokio::test]
async fn connect_is_answered_and_its_connection_ends() {
    let world = world_that_echoes(Settings::default()).await;
    let answer = world
        .raw("CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\nGET /hello HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains(r#""code":"BAD_REQUEST""#), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

fn hasty() -> Settings {
    settings(r#"{"header_timeout":"100ms","idle_timeout":"100ms"}"#)
}

/// A request that is refused before routing gets a complete answer with body and id, is counted,
/// and its sender can read the answer.
#[tokio::test]
async fn each_refusal_is_a_whole_answer_and_is_counted() {
    let world = World::start(&["hello"], hasty()).await;
    let long = |size| "y".repeat(size);
    let after_a_call =
        "GET /missing HTTP/1.1\r\nhost: a\r\n\r\nGET /no such HTTP/1.1\r\n\r\n".to_owned();
    for (request, status, code) in [
        ("GET /hello HTTP/3.7\r\nhost: a\r\n\r\n".to_owned(), 400, "BAD_REQUEST"),
        ("\u{16}\u{3}\u{1} this is TLS\r\n\r\n".to_owned(), 400, "BAD_REQUEST"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 400, "BAD_REQUEST"),
        ("GET /hello HTTP/1.1\r\nhost : a\r\n\r\n".to_owned(), 400, "BAD_REQUEST"),
        ("GET /hello HTTP/1.1\r\nconnection: close\r\n\r\n".to_owned(), 400, "BAD_REQUEST"),
        (format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", long(65_530)), 431, "HEAD_TOO_LARGE"),
        (format!("GET / HTTP/1.1\r\nx: {}", long(300_000)), 431, "HEAD_TOO_LARGE"),
        (format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(1100)), 431, "HEAD_TOO_LARGE"),
        ("GET /hello HTTP/1.1\r\nhost: a\r\nx-half: ".to_owned(), 408, "HEAD_TOO_SLOW"),
        (after_a_call, 400, "BAD_REQUEST"),
    ] {
        let series = format!("epsilon_call_errors_total{{code=\"{code}\",fault=\"caller\"}}");
        let before = counted(&world, &series);
        let answer = world.raw(&request).await;
        let what = &request[..request.len().min(60)];
        let last = &answer[answer.rfind("HTTP/1.1 4").unwrap_or_default()..];
        let Some((head, body)) = last.split_once("\r\n\r\n") else {
            panic!("{what:?}: {answer:?}")
        };
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{what:?}: {head}");
        let error: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(error["error"]["code"], code, "{what:?}");
        let id = error["error"]["request_id"].as_str().unwrap();
        assert!(head.contains(&format!("x-epsilon-request-id: {id}")), "{what:?}: {head}");
        assert_eq!(counted(&world, &series), before + 1, "{what:?}");
    }
}

fn counted(world: &World, series: &str) -> u64 {
    let metrics = world.metrics();
    let line = metrics.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

#[tokio::test]
async fn more_than_a_hundred_fields_pass_both_ways() {
    let world = World::with(&["hello"]).await;
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    for count in [10, 300, 1000, 5] {
        world.vm.script("hello", move |call| async move {
            let names = call.request.headers().keys();
            let seen = names.filter(|name| name.as_str().starts_with("x-n")).count();
            let mut answer = fake::answer(Response::new(body::full(format!("seen {seen}."))));
            for n in 0..count {
                let cookie = format!("c{n}=1").parse().unwrap();
                answer.response.headers_mut().append("set-cookie", cookie);
            }
            Ok(answer)
        });
        let fields: String = (0..count).map(|n| format!("x-n{n}: y\r\n")).collect();
        let request =
            format!("POST /hello HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n{fields}\r\nbody");
        stream.write_all(request.as_bytes()).await.unwrap();
        let end = format!("seen {count}.");
        let answer = read_until(&mut stream, &end).await;
        assert_eq!(answer.matches("set-cookie: ").count(), count);
    }
}

/// The function receives the target as it was sent; what the platform reads of it is escaped as
/// browsers do.
#[tokio::test]
async fn unusual_characters_of_a_target_reach_the_function() {
    let world = World::with(&["hello"]).await;
    world.vm.script("hello", |call| async move {
        let raw = call.request.extensions().get::<RawTarget>();
        let raw = raw.map_or(b"-".to_vec(), |raw| raw.0.as_bytes().to_vec());
        ok(format!("{} {}!\n", call.request.uri(), raw.escape_ascii()))
    });
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    for (method, target, want) in [
        ("GET", &b"/hello?filter={\"a\":1}"[..], r#"/?filter={%22a%22:1} /?filter={\"a\":1}"#),
        ("POST", b"/hello/<b>", "/%3Cb%3E /<b>"),
        ("GET", b"/hello/a`b|c^d\\e?x=|{}", r"/a%60b|c^d\e?x=|{} /a`b|c^d\\e?x=|{}"),
        ("GET", b"/hello/caf\xe9", r"/caf%E9 /caf\xe9"),
        ("GET", "/hello/\u{fc}".as_bytes(), r"/%C3%BC /\xc3\xbc"),
        ("GET", b"/hello/%3C?%22", "/%3C?%22 -"),
        ("GET", b"/hello@1/<", "/%3C /<"),
    ] {
        let end = match method {
            "POST" => "content-length: 10\r\n\r\nGET /< HTT",
            _ => "\r\n",
        };
        let head = &b" HTTP/1.1\r\nhost: a\r\nif-none-match: \"<>\"\r\n"[..];
        let request = [method.as_bytes(), b" ", target, head, end.as_bytes()].concat();
        stream.write_all(&request).await.unwrap();
        let answer = read_until(&mut stream, "!\n").await;
        assert!(answer.contains(&format!("\r\n\r\n{want}!\n")), "{want}: {answer}");
    }
    let unknown = "GET /he<llo HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    assert!(world.raw(unknown).await.contains("FUNCTION_NOT_FOUND"));
}

/// `nc -N` and scripts close their sending half after the request.
#[tokio::test]
async fn a_half_closed_caller_gets_its_answer() {
    let world = World::with(&["hello"]).await;
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    world.vm.script("hello", move |_| {
        let gate = Arc::clone(&opened);
        async move {
            let _open = gate.acquire().await;
            ok("at last")
        }
    });
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    stream.write_all(b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    eventually(1, || world.vm.active()).await;
    gate.add_permits(1);
    assert!(read_to_close(&mut stream).await.ends_with("at last"));
}

/// A reset means that the caller is gone. A half-closed connection may still read, and counts as
/// gone after two seconds without anything to read.
#[tokio::test]
async fn a_disconnected_caller_is_noticed() {
    for (half_close_timeout, resets) in
        [(Duration::from_millis(50), false), (Duration::from_secs(3600), true)]
    {
        let mut settings = Settings::default();
        settings.limits.half_close_timeout = half_close_timeout;
        let world = World::start(&["slow"], settings).await;
        world.vm.script("slow", |_| std::future::pending());
        let mut caller = TcpStream::connect(world.public).await.unwrap();
        caller.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        eventually(1, || world.vm.active()).await;
        if resets {
            caller.set_zero_linger().unwrap();
        }
        drop(caller);
        eventually(0, || world.vm.active()).await;
    }
}

/// Early hints are only useful before the answer.
#[tokio::test]
async fn interim_answers_reach_the_caller_before_the_answer() {
    let world = World::with(&["hello"]).await;
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    world.vm.script("hello", move |call| {
        let gate = Arc::clone(&opened);
        async move {
            let link =
                |n: usize| [(LINK, format!("</{n}.css>").parse().unwrap())].into_iter().collect();
            for n in 0..2 {
                call.interim.as_ref().unwrap().interim(StatusCode::EARLY_HINTS, link(n));
            }
            let _open = gate.acquire().await;
            ok("page")
        }
    });
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    stream.write_all(b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </0.css>\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </1.css>\r\n\r\n";
    assert_eq!(read_until(&mut stream, "1.css>\r\n\r\n").await, hints);
    gate.add_permits(100);
    assert!(read_until(&mut stream, "page").await.starts_with("HTTP/1.1 200 OK\r\n"));
    let old = world.raw("GET /hello HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 OK\r\n"), "{old}");
}
