//! Calls: successful ones, failing ones, and callers that disconnect.

use crate::{
    fake::{self, ok},
    world::{World, built, eventually, patient, read, read_until},
};
use bytes::Bytes;
use epsilon_api::{
    body::{self, BodyError, CallBody},
    error::VmError,
    ids::FunctionName,
    units,
    vm::{Call, Held, Spent, StartPhases},
};
use epsilon_gateway::config::Settings;
use futures_util::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::TokioIo;
use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

/// Answers with the request as the function received it.
async fn echo(call: Call) -> Result<epsilon_api::vm::Answer, VmError> {
    let (head, body) = call.request.into_parts();
    let bytes = body.collect().await.map_err(|cause| VmError::FunctionCrashed {
        function: call.version.function.clone(),
        cause,
    })?;
    let response = Response::builder()
        .header("x-seen", format!("{} {}", head.method, head.uri))
        .header("x-type", head.headers.get("content-type").map_or("", |v| v.to_str().unwrap()))
        .header("x-length", head.headers.get("content-length").map_or("", |v| v.to_str().unwrap()))
        .body(body::full(bytes.to_bytes()))
        .unwrap();
    Ok(fake::answer(response))
}

fn name(text: &str) -> FunctionName {
    FunctionName::parse(text).unwrap()
}

/// A request body that the test sends chunk by chunk.
fn fed() -> (mpsc::Sender<&'static str>, CallBody) {
    let (feed, chunks) = mpsc::channel(4);
    let frames = ReceiverStream::new(chunks)
        .map(|text: &'static str| Ok::<_, BodyError>(Frame::data(Bytes::from(text))));
    (feed, body::boxed(StreamBody::new(frames)))
}

/// A JSON body arrives complete, with the `Content-Length` of the caller.
#[tokio::test]
async fn a_json_post_passes_untouched() {
    let world = World::with(&["hello"]).await;
    world.vm.script("hello", echo);
    let text = r#"{"name":"Ada","n":[1,2,3]}"#;
    let request = Request::post("/hello/greet?x=%20y&&z")
        .header("content-type", "application/json")
        .body(body::full(text))
        .unwrap();
    let reply = read(world.send(request).await).await;
    assert_eq!((reply.status.as_u16(), reply.body.as_str()), (200, text));
    assert_eq!(reply.header("x-seen"), "POST /greet?x=%20y&&z");
    assert_eq!(reply.header("x-type"), "application/json");
    assert_eq!(reply.header("x-length"), text.len().to_string());
}

#[tokio::test]
async fn every_method_passes() {
    let world = World::with(&["hello"]).await;
    world.vm.script("hello", echo);
    for method in ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"] {
        let reply = world.call(Method::from_bytes(method.as_bytes()).unwrap(), "/hello", "").await;
        assert_eq!(reply.header("x-seen"), format!("{method} /"));
    }
    let reply = world.call(Method::HEAD, "/hello", "").await;
    assert_eq!((reply.status.as_u16(), reply.body.as_str()), (200, ""));
}

/// An error is never a 200 and contains nothing about the machine.
#[tokio::test]
async fn an_error_is_never_a_200() {
    let world = World::with(&["pay"]).await;
    let cause = || "connect /var/lib/epsilon/vm/sockets: refused";
    type Row = (fn() -> VmError, u16, &'static str);
    let rows: [Row; 7] = [
        (|| VmError::FunctionError { function: name("pay") }, 500, "FUNCTION_ERROR"),
        (
            || VmError::FunctionCrashed { function: name("pay"), cause: "at /secret".into() },
            502,
            "FUNCTION_CRASHED",
        ),
        (
            || VmError::InitFailed { function: name("pay"), detail: "at /secret".into() },
            502,
            "FUNCTION_INIT_FAILED",
        ),
        (
            || VmError::ConcurrencyLimit { function: name("pay"), limit: 2 },
            429,
            "CONCURRENCY_LIMIT",
        ),
        (
            || VmError::NoCapacity { function: name("pay"), cause: "at /secret".into() },
            503,
            "NO_CAPACITY",
        ),
        (
            || VmError::FunctionTimeout { function: name("pay"), timeout: Duration::from_secs(1) },
            504,
            "FUNCTION_TIMEOUT",
        ),
        (|| VmError::Internal("at /secret".into()), 500, "INTERNAL"),
    ];
    for (error, status, code) in rows {
        world.vm.script("pay", move |_| async move { Err(error()) });
        let reply = world.call(Method::POST, "/pay", "{}").await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (status, code));
        assert!(!reply.body.contains("secret") && !reply.body.contains(cause()), "{reply:?}");
        assert_eq!(reply.headers.contains_key("retry-after"), matches!(status, 429 | 503));
        assert!(reply.header("server-timing").contains(";dur="));
        assert_eq!(reply.header("content-type"), "application/json");
    }
}

/// Every unknown name is answered 404 without a request to the VM.
#[tokio::test]
async fn an_unknown_function_is_404() {
    let world = World::with(&["hello"]).await;
    let long = format!("/{}", "a".repeat(300));
    for path in [
        "/unlisted",
        "/__proto__",
        "/constructor",
        "/..%2f..%2fetc%2fpasswd",
        "/%2e%2e",
        "/hello;id",
        "/$(reboot)",
        "/a|b",
        "/hello%00",
        "/%F0%9F%92%A9",
        &long,
    ] {
        let reply = world.get(path).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (404, "FUNCTION_NOT_FOUND"));
        let reply = world.call(Method::POST, path, "a body that is not read").await;
        assert_eq!(reply.status, 404);
    }
    assert_eq!(world.get("/").await.status, 200);
    assert!(!world.metrics().contains("unlisted"), "unknown names must not become series");
}

/// A caller that disconnects while it waits releases everything it held.
#[tokio::test]
async fn a_client_abort_frees_the_place() {
    let world = World::with(&["slow"]).await;
    world.vm.script("slow", |_| std::future::pending());
    let mut caller = TcpStream::connect(world.public).await.unwrap();
    caller.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    eventually(1, || world.vm.active()).await;
    assert_eq!(world.running().calls(), 1);
    drop(caller);
    eventually(0, || world.vm.active()).await;
    eventually(0, || world.running().calls()).await;
    assert!(world.metrics().contains(r#"epsilon_calls_total{code="499",function="slow"} 1"#));
    assert!(world.metrics().contains("epsilon_in_flight 0"));
}

#[tokio::test]
async fn a_client_that_leaves_mid_download_frees_the_place() {
    let world = World::with(&["stream"]).await;
    world.vm.script("stream", |_| async {
        let endless =
            stream::repeat_with(|| Ok::<_, BodyError>(Frame::data(Bytes::from("tick\n"))));
        Ok(fake::answer(Response::new(body::boxed(StreamBody::new(endless)))))
    });
    let mut caller = TcpStream::connect(world.public).await.unwrap();
    caller.write_all(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    read_until(&mut caller, "tick").await;
    assert_eq!(world.vm.active(), 1);
    drop(caller);
    eventually(0, || world.vm.active()).await;
    eventually(true, || world.metrics().contains("epsilon_answers_cut_total 1")).await;
}

#[tokio::test]
async fn a_client_that_leaves_mid_upload_breaks_the_body() {
    let world = World::with(&["up"]).await;
    let (sender, mut receiver) = mpsc::channel(1);
    world.vm.script("up", move |call| {
        let sender = sender.clone();
        async move {
            let read = call.request.into_body().collect().await;
            sender.send(read.is_err()).await.unwrap();
            ok("never seen")
        }
    });
    let mut caller = TcpStream::connect(world.public).await.unwrap();
    // Large enough that the call starts before the whole body has arrived.
    let half = "x".repeat(300 << 10);
    let head = "POST /up HTTP/1.1\r\nhost: x\r\ncontent-length: 600000\r\n\r\n";
    caller.write_all(format!("{head}{half}").as_bytes()).await.unwrap();
    eventually(1, || world.vm.active()).await;
    drop(caller);
    // Either the function's body fails, or the call is dropped before the function reads it.
    if let Ok(Some(broken)) = tokio::time::timeout(Duration::from_secs(5), receiver.recv()).await {
        assert!(broken);
    }
    eventually(0, || world.vm.active()).await;
}

#[tokio::test]
async fn every_answer_has_an_id_and_timings() {
    let world = World::with(&["hello"]).await;
    world.vm.script("hello", |call| async move {
        let mut answer = fake::answer(Response::new(body::full(call.request_id.to_string())));
        answer.response.headers_mut().insert("server-timing", "db;dur=3".parse().unwrap());
        answer.response.headers_mut().insert("x-epsilon-outcome", "forged".parse().unwrap());
        Ok(answer)
    });
    let request = Request::get("/hello").header("x-epsilon-request-id", "my-call-0001");
    let reply = read(world.send(request.body(body::empty()).unwrap()).await).await;
    assert_eq!(
        (reply.header("x-epsilon-request-id"), &*reply.body),
        ("my-call-0001", "my-call-0001")
    );
    let timings: Vec<_> = reply.headers.get_all("server-timing").iter().collect();
    assert_eq!(timings, ["db;dur=3", "queue;dur=0.000, exec;dur=1.000"]);
    assert!(!reply.headers.contains_key("x-epsilon-outcome"));

    let request = Request::get("/hello").header("x-epsilon-request-id", "no good");
    let reply = read(world.send(request.body(body::empty()).unwrap()).await).await;
    assert_eq!(reply.header("x-epsilon-request-id").len(), 32);
    assert_eq!(world.get("/").await.header("x-epsilon-request-id").len(), 32);
}

#[tokio::test]
async fn a_cold_call_reports_the_phases_of_its_start() {
    let world = World::with(&["cold"]).await;
    world.vm.script("cold", |_| async {
        let mut answer = fake::answer(Response::new(body::empty()));
        let (create, init) = (Duration::from_millis(60), Duration::from_micros(1500));
        let start = StartPhases { create, init, ..StartPhases::default() };
        answer.spent = Spent { start: Some(start), ..answer.spent };
        Ok(answer)
    });
    assert_eq!(
        world.get("/cold").await.header("server-timing"),
        // Phases that were not part of the start are left out.
        "queue;dur=0.000, start;dur=61.500, create;dur=60.000, init;dur=1.500, exec;dur=1.000"
    );
}

#[tokio::test]
async fn a_sender_sees_413_for_too_large_bodies() {
    let settings = Settings { max_body: units::Bytes(1024), ..Settings::default() };
    let world = World::start(&["hello"], settings).await;
    // Far more than the kernel's buffers hold: the sender must be able to finish.
    let big = "x".repeat(16 << 20);
    let reply = world.call(Method::POST, "/hello", &big).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (413, "BODY_TOO_LARGE"));
    assert_eq!(world.vm.active(), 0);
}

#[tokio::test]
async fn a_streamed_body_over_the_limit_is_413() {
    let settings = Settings { max_body: units::Bytes(1024), ..Settings::default() };
    let world = World::start(&["hello"], settings).await;
    world.vm.script("hello", echo);
    let chunk = Bytes::from("x".repeat(64 << 10));
    let frames = stream::repeat_with(move || Ok::<_, BodyError>(Frame::data(chunk.clone())));
    let big = body::boxed(StreamBody::new(frames.take(200)));
    let reply = read(world.send(Request::post("/hello").body(big).unwrap()).await).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (413, "BODY_TOO_LARGE"));

    let fits = body::full("x".repeat(1024));
    let reply = read(world.send(Request::post("/hello").body(fits).unwrap()).await).await;
    assert_eq!((reply.status.as_u16(), reply.body.len()), (200, 1024));
}

#[tokio::test]
async fn an_ignored_body_does_not_break_the_answer() {
    let world = World::with(&["hello"]).await;
    world.vm.script("hello", |_| async { ok("early") });
    let reply = world.call(Method::POST, "/hello", &"x".repeat(16 << 20)).await;
    assert_eq!((reply.status.as_u16(), reply.body.as_str()), (200, "early"));
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let world = World::with(&["chat"]).await;
    world.vm.script("chat", |call| async move {
        // Answers each chunk before the next one is sent.
        Ok(fake::answer(Response::new(call.request.into_body())))
    });
    let (feed, body) = fed();
    let mut response = world.send(Request::post("/chat").body(body).unwrap()).await;
    for text in ["one", "two"] {
        feed.send(text).await.unwrap();
        let frame = patient(response.body_mut().frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), text);
    }
    drop(feed);
    assert!(patient(response.body_mut().frame()).await.is_none());
    eventually(0, || world.vm.active()).await;
}

#[tokio::test]
async fn server_sent_events_arrive_one_by_one() {
    let world = World::with(&["events"]).await;
    let (feed, events) = fed();
    let events = Arc::new(std::sync::Mutex::new(Some(events)));
    world.vm.script("events", move |_| {
        let body = events.lock().unwrap().take().unwrap();
        async move {
            let response = Response::builder().header("content-type", "text/event-stream");
            Ok(fake::answer(response.body(body).unwrap()))
        }
    });
    let mut caller = TcpStream::connect(world.public).await.unwrap();
    caller.write_all(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    feed.send("data: 1\n\n").await.unwrap();
    read_until(&mut caller, "data: 1\n\n").await;
    feed.send("data: 2\n\n").await.unwrap();
    read_until(&mut caller, "data: 2\n\n").await;
}

#[tokio::test]
async fn a_function_that_dies_mid_answer_breaks_the_answer() {
    let world = World::with(&["dies"]).await;
    let (feed, frames) = mpsc::channel::<Result<Frame<Bytes>, BodyError>>(1);
    let frames = Arc::new(std::sync::Mutex::new(Some(frames)));
    world.vm.script("dies", move |_| {
        let frames = ReceiverStream::new(frames.lock().unwrap().take().unwrap());
        async { Ok(fake::answer(Response::new(body::boxed(StreamBody::new(frames))))) }
    });
    feed.send(Ok(Frame::data(Bytes::from("half")))).await.unwrap();
    let response = world.send(Request::get("/dies").body(body::empty()).unwrap()).await;
    assert_eq!(response.status(), 200);
    feed.send(Err("the instance died".into())).await.unwrap();
    assert!(
        patient(response.into_body().collect()).await.is_err(),
        "a cut answer must not look complete"
    );
}

/// An instance that accepts an upgrade and echoes; the script connects to it as an agent does.
async fn upgrade(call: Call) -> Result<epsilon_api::vm::Answer, VmError> {
    let instance = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = instance.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = instance.accept().await.unwrap();
        let head = read_until(&mut stream, "\r\n\r\n").await.to_lowercase();
        assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"));
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                      upgrade: websocket\r\nsec-websocket-accept: yes\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let mut response = sender.send_request(call.request).await.unwrap();
    let upgraded = hyper::upgrade::on(&mut response);
    let mut answer = fake::answer(response.map(|_| body::empty()));
    answer.response.extensions_mut().insert(upgraded);
    answer.response.extensions_mut().insert(Held(Arc::new(())));
    Ok(answer)
}

pub(crate) const UPGRADE: &[u8] = b"GET /ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\n\
    upgrade: websocket\r\nsec-websocket-key: k\r\nsec-websocket-version: 13\r\n\r\n";

/// A caller with an open WebSocket.
pub(crate) async fn open_socket(world: &World) -> TcpStream {
    world.vm.script("ws", upgrade);
    let mut caller = TcpStream::connect(world.public).await.unwrap();
    caller.write_all(UPGRADE).await.unwrap();
    let head = read_until(&mut caller, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    for line in ["connection: upgrade", "upgrade: websocket", "sec-websocket-accept: yes"] {
        assert!(head.contains(line), "{head}");
    }
    assert!(head.contains("x-epsilon-request-id: "));
    caller
}

#[tokio::test]
async fn a_websocket_passes_and_counts_until_its_end() {
    let world = World::with(&["ws"]).await;
    let mut caller = open_socket(&world).await;
    for text in ["ping", "pong"] {
        caller.write_all(text.as_bytes()).await.unwrap();
        assert_eq!(read_until(&mut caller, text).await, text);
    }
    assert_eq!(world.running().calls(), 1);
    assert!(world.metrics().contains("epsilon_connections 1"));
    caller.shutdown().await.unwrap();
    assert_eq!(patient(caller.read(&mut [0; 9])).await.unwrap(), 0);
    eventually(0, || world.running().calls()).await;
    eventually(true, || world.metrics().contains("epsilon_connections 0")).await;
    assert!(world.metrics().contains(r#"epsilon_calls_total{code="101",function="ws"} 1"#));
}

#[tokio::test]
async fn a_websocket_ends_with_the_functions_timeout() {
    let world = World::with(&[]).await;
    let mut work = built("shop", &[("ws", "1")]);
    work.functions[0].spec.timeout = Duration::from_millis(200);
    world.builder.next(Ok(work));
    crate::world::events(world.push().await).await;
    let mut caller = open_socket(&world).await;
    assert_eq!(patient(caller.read(&mut [0; 9])).await.unwrap_or(0), 0);
    eventually(0, || world.running().calls()).await;
}

#[tokio::test]
async fn an_ignored_upgrade_is_a_plain_answer() {
    let world = World::with(&["ws"]).await;
    world.vm.script("ws", |_| async { ok("no") });
    let mut caller = TcpStream::connect(world.public).await.unwrap();
    caller.write_all(UPGRADE).await.unwrap();
    assert!(read_until(&mut caller, "no").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn continue_is_sent_only_for_wanted_bodies() {
    let settings = Settings { max_body: units::Bytes(8), ..Settings::default() };
    let world = World::start(&["hello"], settings).await;
    world.vm.script("hello", echo);
    let ask = async |length: usize| {
        let mut caller = TcpStream::connect(world.public).await.unwrap();
        let head = format!(
            "POST /hello HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        );
        caller.write_all(head.as_bytes()).await.unwrap();
        let answer = read_until(&mut caller, "\r\n\r\n").await;
        (caller, answer)
    };
    let (mut caller, answer) = ask(5).await;
    assert!(answer.starts_with("HTTP/1.1 100"), "{answer}");
    caller.write_all(b"hello").await.unwrap();
    assert!(read_until(&mut caller, "hello").await.starts_with("HTTP/1.1 200"));
    let (_, answer) = ask(9).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn a_host_of_the_domain_calls_the_function() {
    let settings = Settings { domain: Some("fn.example.org".into()), ..Settings::default() };
    let world = World::start(&["hello"], settings).await;
    world.vm.script("hello", echo);
    let answer = world
        .raw("GET /a?b HTTP/1.1\r\nhost: Hello.FN.example.org\r\nconnection: close\r\n\r\n")
        .await;
    assert!(answer.contains("x-seen: GET /a?b"), "{answer}");
    let detail = world.ask(Method::GET, "/v1/functions/hello", "").await.json();
    let url = detail["data"]["url"].as_str().unwrap().to_owned();
    assert!(url.starts_with("http://hello.fn.example.org:"), "{url}");
}

/// A call stays with the version it started with; the next call gets the new version.
#[tokio::test]
async fn a_deploy_does_not_touch_calls_that_run() {
    let world = World::with(&["hello"]).await;
    let (feed, slow) = fed();
    let slow = Arc::new(std::sync::Mutex::new(Some(slow)));
    world.vm.script("hello", move |call| {
        let slow = slow.lock().unwrap().take();
        async move {
            match slow {
                Some(body) => Ok(fake::answer(Response::new(body))),
                None => ok(format!("version {}", call.version.number)),
            }
        }
    });
    let mut running = world.send(Request::get("/hello").body(body::empty()).unwrap()).await;
    feed.send("old ").await.unwrap();
    world.deploy("shop", &[("hello", "2")]).await;
    assert_eq!(world.get("/hello").await.body, "version 2");
    assert_eq!(world.vm.retired(), ["hello@1"]);
    feed.send("still").await.unwrap();
    drop(feed);
    let whole = patient(running.body_mut().collect()).await.unwrap().to_bytes();
    assert_eq!(whole, "old still");
}

#[tokio::test]
async fn a_thousand_calls_at_once_are_all_answered() {
    let world = Arc::new(World::with(&["busy"]).await);
    world.vm.script("busy", |call| async move {
        tokio::task::yield_now().await;
        Err(VmError::ConcurrencyLimit { function: call.version.function.clone(), limit: 2 })
    });
    let calls = (0..1000).map(|_| {
        let world = Arc::clone(&world);
        tokio::spawn(async move { world.get("/busy").await.status })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(patient(call).await.unwrap(), StatusCode::TOO_MANY_REQUESTS);
    }
    assert_eq!(world.vm.active.load(SeqCst), 0);
    assert!(world.metrics().contains(r#"code="429",function="busy"} 1000"#));
}

#[tokio::test]
async fn a_drained_vm_takes_no_calls() {
    let world = World::with(&["hello"]).await;
    world.vm.script("hello", echo);
    let reply = world.ask(Method::POST, "/v1/vms/vm-1/drain", "").await;
    assert_eq!(reply.json()["data"]["state"], "draining");
    let reply = world.get("/hello").await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (503, "NO_CAPACITY"));
    world.ask(Method::POST, "/v1/vms/vm-1/undrain", "").await;
    assert_eq!(world.get("/hello").await.status, 200);
}
