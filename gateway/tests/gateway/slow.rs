//! Callers that send or read slowly. No slot of a function is taken before the body has arrived,
//! and a call whose body stalls ends as an error of the caller.

use crate::{
    fake::{self, ok},
    world::{World, eventually, patient, read_to_close, read_until},
};
use bytes::Bytes;
use epsilon_api::{
    body::{self, BodyError},
    error::VmError,
    vm::Call,
};
use epsilon_gateway::config::Settings;
use futures_util::{future::join_all, stream};
use http::{Method, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use std::{sync::atomic::Ordering::SeqCst, time::Duration};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// Answers with the size of the body; a broken body gives the error that an agent returns.
async fn size(call: Call) -> Result<epsilon_api::vm::Answer, VmError> {
    match call.request.into_body().collect().await {
        Ok(body) => ok(body.to_bytes().len().to_string()),
        Err(err) => Err(VmError::from_body_error(&*err).unwrap_or(VmError::CallerGone)),
    }
}

async fn world(body_timeout: Duration) -> World {
    let settings = Settings { body_timeout, ..Settings::default() };
    let world = World::start(&["up", "other"], settings).await;
    world.vm.script("up", size);
    world.vm.script("other", size);
    world
}

const SOON: Duration = Duration::from_millis(300);
const NEVER: Duration = Duration::from_secs(3600);

async fn begin(world: &World, request: &str) -> TcpStream {
    let mut caller = TcpStream::connect(world.public).await.unwrap();
    caller.write_all(request.as_bytes()).await.unwrap();
    caller
}

fn post(length: usize, start: &str) -> String {
    format!("POST /up HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{start}")
}

#[tokio::test]
async fn slow_uploads_take_no_place_and_others_are_served() {
    let world = world(NEVER).await;
    let begun = join_all((0..200).map(|_| {
        let world = &world;
        async move { begin(world, &post(100_000, "ten bytes.")).await }
    }));
    let mut slow = begun.await;
    eventually(true, || world.metrics().contains("epsilon_in_flight 200")).await;
    assert_eq!(world.vm.active(), 0, "no slow call has reached a VM");
    for _ in 0..20 {
        assert_eq!(world.call(Method::POST, "/up", "hello").await.body, "5");
    }
    // A slow call continues normally once its body has arrived.
    let mut one = slow.pop().unwrap();
    one.write_all("x".repeat(99_990).as_bytes()).await.unwrap();
    assert!(read_until(&mut one, "100000").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_missing_body_is_408_and_closes() {
    let world = world(SOON).await;
    for request in [
        post(100_000, "ten bytes."),
        post(1 << 20, ""),
        "POST /up HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n".to_owned(),
    ] {
        let mut caller = begin(&world, &request).await;
        let answer = read_to_close(&mut caller).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        for line in ["connection: close", r#""code":"BODY_TOO_SLOW""#, r#""type":"limit""#] {
            assert!(answer.contains(line), "{line}: {answer}");
        }
    }
    eventually(0, || world.vm.active()).await;
    assert!(world.metrics().contains(r#"epsilon_calls_total{code="408",function="up"} 3"#));
}

#[tokio::test]
async fn a_large_body_that_stops_is_408() {
    let world = world(SOON).await;
    let mut caller = begin(&world, &post(1 << 20, &"x".repeat(300 << 10))).await;
    eventually(1, || world.vm.active()).await;
    let answer = read_to_close(&mut caller).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    eventually(0, || world.vm.active()).await;
}

#[tokio::test]
async fn a_trickling_body_is_408() {
    let world = world(SOON).await;
    let mut caller = begin(&world, &post(100_000, "")).await;
    let (mut reader, mut writer) = caller.split();
    let mut ticks = tokio::time::interval(SOON / 10);
    let trickle = async {
        while writer.write_all(b"x").await.is_ok() {
            ticks.tick().await;
        }
    };
    let mut answer = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut answer);
    tokio::select! {
        _ = patient(read) => {}
        () = trickle => {}
    }
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    eventually(true, || world.metrics().contains(r#"code="408",function="up"} 1"#)).await;
    assert_eq!(world.vm.active.load(SeqCst), 0);
}

/// A dialogue in one call: after the answer has begun, the caller may pause.
#[tokio::test]
async fn once_an_answer_has_begun_both_sides_may_wait() {
    let world = world(SOON).await;
    world.vm.script("up", |call| async move {
        Ok(fake::answer(Response::new(call.request.into_body())))
    });
    let head = "POST /up HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut caller = begin(&world, head).await;
    for word in ["one", "two"] {
        // The pause is longer than a call may take whose answer has not begun.
        let other = "POST /other HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n";
        for _ in 0..2 {
            let answer = read_to_close(&mut begin(&world, other).await).await;
            assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        }
        caller.write_all(format!("3\r\n{word}\r\n").as_bytes()).await.unwrap();
        read_until(&mut caller, word).await;
    }
}

#[tokio::test]
async fn an_unread_answer_is_cut_and_frees_its_slot() {
    let world = world(SOON).await;
    world.vm.script("up", |_| async {
        let piece = Bytes::from(vec![b'x'; 64 << 10]);
        let endless = stream::repeat_with(move || Ok::<_, BodyError>(Frame::data(piece.clone())));
        Ok(fake::answer(Response::new(body::boxed(StreamBody::new(endless)))))
    });
    let _caller = begin(&world, "GET /up HTTP/1.1\r\nhost: x\r\n\r\n").await;
    eventually(1, || world.vm.active()).await;
    eventually(0, || world.vm.active()).await;
    eventually(true, || world.metrics().contains("epsilon_answers_cut_total 1")).await;
}
