//! A fleet's agent as its gateway sees it: calls, orders, reports, drains, over real sockets.

use crate::{
    gateway::{Gateway, LIMIT, Vm, connect, refusal, text},
    support::{one, until, version},
    wrapper::{Image, Load},
};
use bytes::Bytes;
use epsilon_api::{
    body::{self, BodyError},
    fleet::{Refusal, read_spent},
    function::{FunctionSpec, Runtime, Version},
    headers::{MAY_WAIT, REFUSAL, SPENT, VERSION},
    log::LogRecord,
    vm::VmState,
};
use epsilon_cloud_aws::imds::{Imds, fake::FakeImds};
use epsilon_vm_agent::engine::fake::FakeEngine;
use futures_util::stream;
use http::Method;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::TokioIo;
use std::{
    future::pending,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};

fn function(
    engine: &FakeEngine,
    name: &str,
    change: impl FnOnce(&mut FunctionSpec),
) -> (Arc<Version>, Arc<Image>) {
    let image = Image::new(Load::Works);
    engine.add_image(name, image.program());
    let mut spec = FunctionSpec::new(Runtime::Node, "index.js", name);
    change(&mut spec);
    (version(name, 1, spec), image)
}

#[tokio::test]
async fn version_is_sent_once_and_then_called() {
    let vm = Vm::new().await;
    let (hello, _) = function(&vm.engine, "hello", |_| {});
    assert_eq!(refusal(vm.get(&hello, "/").await).await, Refusal::UnknownVersion);
    vm.send_version(&hello).await;
    let first = vm.get(&hello, "/").await;
    let spent = read_spent(first.headers()[SPENT].to_str().unwrap()).unwrap();
    assert!(spent.start.is_some(), "{spent:?}");
    let instance = text(first).await;
    let second = vm.get(&hello, "/").await;
    assert!(read_spent(second.headers()[SPENT].to_str().unwrap()).unwrap().start.is_none());
    assert_eq!(text(second).await, instance);
    vm.end().await;
}

#[tokio::test]
async fn function_sees_no_headers_of_the_fleet() {
    let vm = Vm::new().await;
    let (hello, _) = function(&vm.engine, "hello", |_| {});
    vm.send_version(&hello).await;
    let request = vm.call_of(&hello, "/header-names").header(MAY_WAIT, "0").header("cookie", "a=1");
    let names = text(vm.send(request.body(body::empty()).unwrap()).await).await;
    assert_eq!(names, "cookie host x-epsilon-deadline-ms x-epsilon-request-id");

    let forged = vm.get(&hello, "/forge").await;
    assert!(!forged.headers().contains_key(REFUSAL));
    assert_ne!(forged.headers()[SPENT], "1;1");
    assert_eq!(text(forged).await, "forged");
}

#[tokio::test]
async fn bodies_stream_both_ways_and_the_connection_stays() {
    let vm = Vm::new().await;
    let (hello, image) = function(&vm.engine, "hello", |_| {});
    vm.send_version(&hello).await;
    let mut connection = vm.connect().await;
    for _ in 0..2 {
        let (to, pieces) = mpsc::channel::<&'static str>(1);
        let pieces = stream::unfold(pieces, |mut pieces| async move {
            let piece = pieces.recv().await?;
            Some((Ok::<_, BodyError>(Frame::data(Bytes::from(piece))), pieces))
        });
        let upload = body::boxed(StreamBody::new(Box::pin(pieces)));
        let request = vm.call_of(&hello, "/echo").method(Method::POST).body(upload).unwrap();
        let answered = connection.sender.send_request(request);
        to.send("first").await.unwrap();
        let mut body = answered.await.unwrap().into_body();
        let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(piece, "first", "the answer begins before the rest was sent");
        to.send("second").await.unwrap();
        drop(to);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "second");
    }
    assert_eq!(image.connections.load(Ordering::SeqCst), 1);
}

/// Else the connection is reset while a gateway is still writing, and the answer is lost.
#[tokio::test]
async fn a_refused_upload_does_not_cost_the_answer() {
    let vm = Vm::new().await;
    let head = format!(
        "POST /echo HTTP/1.1\r\nhost: x\r\nx-epsilon-pass: {}\r\nx-epsilon-version: a@1\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n",
        vm.token(),
        4 << 20
    );
    let mut stream = tokio::net::TcpStream::connect(vm.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    // The body is read only when all was written.
    stream.write_all(&vec![b'x'; 4 << 20]).await.unwrap();
    let mut answer = Vec::new();
    timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.ends_with(r#"{"code":"UNKNOWN_VERSION"}"#), "{answer}");
}

#[tokio::test]
async fn upgrade_passes_and_holds_its_slot() {
    let vm = Vm::new().await;
    let (hello, _) = function(&vm.engine, "hello", |_| {});
    vm.send_version(&hello).await;
    let request = vm.call_of(&hello, "/upgrade");
    let request = request.header("connection", "upgrade").header("upgrade", "echo");
    let response = vm.send(request.body(body::empty()).unwrap()).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["upgrade"], "echo");
    assert!(response.headers().contains_key(SPENT));
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let mut back = [0; 5];
    stream.write_all(b"hello").await.unwrap();
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
    assert_eq!(vm.report().await.calls_active, 1);
    drop(stream);
    let mut reports = vm.reports().await;
    while reports.report().await.calls_active > 0 {}
    vm.end().await;
}

#[tokio::test]
async fn a_gateway_that_hangs_up_ends_the_call() {
    let vm = Vm::new().await;
    let (hello, image) = function(&vm.engine, "hello", |_| {});
    vm.send_version(&hello).await;
    let mut connection = vm.connect().await;
    let request = vm.call_of(&hello, "/while-listened-to").body(body::empty()).unwrap();
    let call = tokio::spawn(async move { connection.sender.send_request(request).await });
    until(|| image.running.load(Ordering::SeqCst), |running| *running == 1).await;
    call.abort();
    until(|| image.running.load(Ordering::SeqCst), |running| *running == 0).await;
    let mut reports = vm.reports().await;
    while reports.report().await.calls_active > 0 {}
    vm.end().await;
}

#[tokio::test]
async fn failures_are_reported_as_what_they_are() {
    let vm = Vm::new().await;
    let (hello, _) =
        function(&vm.engine, "hello", |spec| spec.timeout = Duration::from_millis(300));
    vm.send_version(&hello).await;
    assert_eq!(refusal(vm.get(&hello, "/throw").await).await, Refusal::FunctionError);
    let crashed = refusal(vm.get(&hello, "/crash").await).await;
    assert!(matches!(crashed, Refusal::FunctionCrashed { .. }), "{crashed:?}");
    assert_eq!(refusal(vm.get(&hello, "/forever").await).await, Refusal::FunctionTimeout);
    let odd = vm.request(Method::GET, "/").header(VERSION, "\u{e9}@x").body(body::empty()).unwrap();
    assert_eq!(refusal(vm.send(odd).await).await, Refusal::UnknownVersion);
}

#[tokio::test]
async fn call_that_may_not_wait_begins_or_is_refused() {
    let vm = Vm::with(", memory: 512MiB").await;
    let (hello, image) = function(&vm.engine, "hello", |spec| spec.max_instances = one(1));
    let (big, _) =
        function(&vm.engine, "big", |spec| spec.memory = epsilon_api::units::Bytes::mib(512));
    vm.send_version(&hello).await;
    vm.send_version(&big).await;
    let hurried = |version, path| {
        let request = vm.call_of(version, path).header(MAY_WAIT, "0");
        vm.send(request.body(body::empty()).unwrap())
    };
    // A start that has memory is a beginning.
    text(hurried(&hello, "/").await).await;
    // The only slot is taken, and its memory, too.
    let busy = vm.get(&hello, "/gate");
    let (busy, ()) = tokio::join!(busy, async {
        until(|| image.running.load(Ordering::SeqCst), |running| *running == 1).await;
        let since = Instant::now();
        let refused = refusal(hurried(&hello, "/").await).await;
        assert_eq!(refused, Refusal::ConcurrencyLimit { limit: 1 });
        let refused = refusal(hurried(&big, "/").await).await;
        assert!(matches!(refused, Refusal::NoCapacity { .. }), "{refused:?}");
        assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
        image.gate.add_permits(1);
    });
    assert_eq!(busy.status(), 200);
    text(busy).await;
    // Its instance is idle now and can be evicted.
    text(hurried(&big, "/").await).await;
    vm.end().await;
}

#[tokio::test]
async fn reports_come_each_second_and_at_drain_immediately() {
    let vm = Vm::new().await;
    let (hello, _) = function(&vm.engine, "hello", |_| {});
    vm.send_version(&hello).await;
    text(vm.get(&hello, "/").await).await;
    let mut reports = vm.reports().await;
    let first = reports.report().await;
    assert_eq!((&first.id, first.state, first.instances.len()), (&vm.id, VmState::Ready, 1));
    assert_eq!(first.images, [hello.id()]);
    let since = Instant::now();
    reports.report().await;
    reports.report().await;
    assert!(since.elapsed() < Duration::from_millis(2500), "{:?}", since.elapsed());

    for (path, state) in [("/v1/drain", VmState::Draining), ("/v1/undrain", VmState::Ready)] {
        let since = Instant::now();
        vm.order(Method::POST, path, &()).await;
        while reports.report().await.state != state {}
        assert!(since.elapsed() < Duration::from_millis(100), "{path}: {:?}", since.elapsed());
    }
    let ended = vm.end();
    let since = Instant::now();
    let (_, ()) = tokio::join!(ended, async {
        while reports.report().await.state != VmState::Draining {}
        assert!(since.elapsed() < Duration::from_millis(100), "{:?}", since.elapsed());
        while reports.next().await.is_some() {}
    });
}

#[tokio::test]
async fn draining_vm_finishes_running_calls_refuses_new_ones() {
    let vm = Vm::new().await;
    let (hello, image) = function(&vm.engine, "hello", |_| {});
    vm.send_version(&hello).await;
    let running = vm.get(&hello, "/gate");
    let (running, ()) = tokio::join!(running, async {
        until(|| image.running.load(Ordering::SeqCst), |running| *running == 1).await;
        vm.order(Method::POST, "/v1/drain", &()).await;
        let refused = refusal(vm.get(&hello, "/").await).await;
        assert!(matches!(refused, Refusal::NoCapacity { .. }), "{refused:?}");
        image.gate.add_permits(1);
    });
    text(running).await;
    until(|| vm.engine.containers(), Vec::is_empty).await;
    vm.order(Method::POST, "/v1/undrain", &()).await;
    text(vm.get(&hello, "/").await).await;
}

#[tokio::test]
async fn shutdown_drains_then_leaves_and_removes_everything() {
    let vm = Vm::new().await;
    let (hello, image) = function(&vm.engine, "hello", |_| {});
    vm.send_version(&hello).await;
    let mut connection = vm.connect().await;
    let request = vm.call_of(&hello, "/gate").body(body::empty()).unwrap();
    let call = tokio::spawn(async move {
        let response = connection.sender.send_request(request).await.unwrap();
        response.into_body().collect().await.unwrap()
    });
    until(|| image.running.load(Ordering::SeqCst), |running| *running == 1).await;
    let address = vm.address;
    let received = vm.gateway.received();
    assert!(!received.iter().any(|line| line.starts_with("leave")), "{received:?}");
    let mut reports = vm.reports().await;
    let (gateway, ()) = tokio::join!(vm.end(), async {
        while reports.report().await.state != VmState::Draining {}
        image.gate.add_permits(1);
    });
    call.await.unwrap();
    assert_eq!(gateway.received().last().unwrap(), "leave ");
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[tokio::test]
async fn calls_beyond_the_grace_are_cut_and_counted() {
    let vm = Vm::with(", drain_grace: 100ms").await;
    let (hello, image) = function(&vm.engine, "hello", |_| {});
    vm.send_version(&hello).await;
    let mut connection = vm.connect().await;
    let request = vm.call_of(&hello, "/forever").body(body::empty()).unwrap();
    let call = tokio::spawn(async move { connection.sender.send_request(request).await });
    until(|| image.running.load(Ordering::SeqCst), |running| *running == 1).await;
    let cut = timeout(LIMIT, vm.running.drain(pending::<()>())).await.unwrap();
    assert_eq!(cut, 1);
    assert!(timeout(LIMIT, call).await.unwrap().unwrap().is_err());
    assert_eq!(vm.engine.containers(), [""; 0]);
}

#[tokio::test]
async fn a_second_signal_ends_the_waiting() {
    let vm = Vm::new().await;
    let (hello, image) = function(&vm.engine, "hello", |_| {});
    vm.send_version(&hello).await;
    let mut connection = vm.connect().await;
    let request = vm.call_of(&hello, "/forever").body(body::empty()).unwrap();
    let _call = tokio::spawn(async move { connection.sender.send_request(request).await });
    until(|| image.running.load(Ordering::SeqCst), |running| *running == 1).await;
    let cut = timeout(LIMIT, vm.running.drain(std::future::ready(()))).await.unwrap();
    assert_eq!(cut, 1);
}

#[tokio::test]
async fn orders_are_carried_out() {
    let vm = Vm::new().await;
    let (hello, image) = function(&vm.engine, "hello", |_| {});
    vm.order(Method::POST, "/v1/fetch", &*hello).await;
    let status = vm.report().await;
    assert_eq!(
        (status.images, status.instances.len()),
        (vec![hello.id()], 0),
        "pulled, not started"
    );
    vm.order(Method::POST, "/v1/ready", &*hello).await;
    assert_eq!(image.starts.load(Ordering::SeqCst), 1);
    text(vm.get(&hello, "/log").await).await; // sent with `ready`

    let log = vm.folder.path().join("vm/logs/hello");
    until(|| log.exists(), |there| *there).await;
    vm.order(Method::POST, "/v1/retire", &hello.id()).await;
    vm.order(Method::POST, "/v1/forget", &hello.function).await;
    until(|| vm.engine.containers(), Vec::is_empty).await;
    until(|| log.exists(), |there| !there).await;
    assert_eq!(vm.report().await.images, []);
    assert_eq!(refusal(vm.get(&hello, "/").await).await, Refusal::UnknownVersion);

    let (ghost, _) = function(&FakeEngine::new(), "ghost", |_| {});
    let request = vm.request(Method::POST, "/v1/fetch");
    let response = vm.send(request.body(body::full(serde_json::to_vec(&*ghost).unwrap())).unwrap());
    let refused = refusal(response.await).await;
    assert!(
        matches!(&refused, Refusal::NoCapacity { cause } if cause.contains("ghost")),
        "{refused:?}"
    );
    for (method, path, status) in [
        (Method::PUT, "/v1/version", 400),
        (Method::POST, "/v1/retire", 400),
        (Method::GET, "/v1/logs/hello?since=1", 400),
        (Method::GET, "/v1/logs/..", 400),
        (Method::GET, "/v1/version", 404),
        (Method::GET, "/", 404),
    ] {
        let request = vm.request(method, path).body(body::full("{")).unwrap();
        assert_eq!(vm.send(request).await.status(), status, "{path}");
    }
}

#[tokio::test]
async fn logs_are_read_and_followed() {
    let vm = Vm::new().await;
    let (hello, _) = function(&vm.engine, "hello", |_| {});
    vm.send_version(&hello).await;
    text(vm.get(&hello, "/log").await).await;
    let read = |query: &str| {
        let path = format!("/v1/logs/hello?{query}");
        vm.send(vm.request(Method::GET, &path).body(body::empty()).unwrap())
    };
    let seen = |text: String| -> Vec<String> {
        let record = |line| serde_json::from_str::<LogRecord>(line).unwrap().message;
        text.lines().map(record).collect()
    };
    let mut stored = Vec::new();
    let deadline = Instant::now() + LIMIT;
    while stored.len() < 2 && Instant::now() < deadline {
        stored = seen(text(read("follow=false").await).await);
    }
    assert_eq!(stored, ["raw line", "said"]);
    let mut live = read("follow=true&tail=0").await;
    text(vm.get(&hello, "/log").await).await;
    let mut lines = String::new();
    while lines.matches('\n').count() < 2 {
        let frame = timeout(LIMIT, live.body_mut().frame()).await.unwrap().unwrap().unwrap();
        lines.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
    assert_eq!(seen(lines), ["raw line", "said"]);
    // A reader does not delay the shutdown.
    vm.end().await;
}

#[tokio::test]
async fn requested_drain_outlives_the_agent() {
    let engine = FakeEngine::new();
    let folder = tempfile::tempdir().unwrap();
    let vm = Vm::on(engine.clone(), Gateway::new().await, folder, "", None).await;
    let id = vm.id.clone();
    vm.order(Method::POST, "/v1/drain", &()).await;
    let Vm { running, gateway, folder, .. } = vm;
    running.drain(pending::<()>()).await;

    let vm = Vm::on(engine, gateway, folder, "", None).await;
    let (hello, _) = function(&vm.engine, "hello", |_| {});
    assert_eq!((vm.report().await.state, &vm.id), (VmState::Draining, &id));
    vm.send_version(&hello).await;
    let refused = refusal(vm.get(&hello, "/").await).await;
    assert!(matches!(refused, Refusal::NoCapacity { .. }), "{refused:?}");
    vm.order(Method::POST, "/v1/undrain", &()).await;
    text(vm.get(&hello, "/").await).await;
    vm.end().await;
}

/// The restart of a killed agent: same id, same credentials, its instances adopted, and no version
/// is sent again.
#[test]
fn a_killed_agent_comes_back_to_its_fleet() {
    let machine = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (engine, gateway) =
        machine.block_on(async { (FakeEngine::on_this_runtime(), Gateway::new().await) });
    let life = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (vm, hello, instance, boot) = life.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let vm = Vm::on(engine.clone(), gateway, folder, "", None).await;
        let (hello, _) = function(&vm.engine, "hello", |_| {});
        vm.send_version(&hello).await;
        let instance = text(vm.get(&hello, "/").await).await;
        let boot = vm.report().await.boot;
        (vm, hello, instance, boot)
    });
    let Vm { running, gateway, folder, id, .. } = vm;
    life.shutdown_background();
    drop(running);

    machine.block_on(async {
        let vm = Vm::on(engine, gateway, folder, "", None).await;
        let status = vm.report().await;
        assert_eq!((&status.id, status.instances.len()), (&id, 1));
        assert_ne!(status.boot, boot);
        assert_eq!(refusal(vm.get(&hello, "/").await).await, Refusal::UnknownVersion);
        vm.send_version(&hello).await;
        assert_eq!(text(vm.get(&hello, "/").await).await, instance, "the same instance");
        let joined = vm.gateway.received().iter().filter(|line| line.starts_with("join")).count();
        assert_eq!(joined, 1, "{:?}", vm.gateway.received());
        vm.end().await;
    });
}

#[tokio::test]
async fn a_notice_of_the_cloud_is_a_drain() {
    for (path, notice) in [
        ("spot/instance-action", r#"{"action":"terminate","time":"2030-01-01T00:00:00Z"}"#),
        ("autoscaling/target-lifecycle-state", "Terminated"),
    ] {
        let imds = FakeImds::start("i-0123456789abcdef0").await.unwrap();
        imds.show(path, notice);
        let cloud = Imds::find_at(imds.endpoint(), LIMIT).await;
        assert!(cloud.is_some());
        let engine = FakeEngine::new();
        let folder = tempfile::tempdir().unwrap();
        let vm = Vm::on(engine, Gateway::new().await, folder, "", cloud).await;
        timeout(LIMIT, vm.running.reclaimed()).await.unwrap();
        assert_eq!(vm.report().await.state, VmState::Draining);
        // It cannot be revoked.
        vm.order(Method::POST, "/v1/undrain", &()).await;
        assert_eq!(vm.report().await.state, VmState::Draining);
        vm.end().await;
    }
}

#[tokio::test]
async fn engine_outage_is_reported_immediately() {
    let vm = Vm::with(", reconcile_every: 50ms").await;
    let mut reports = vm.reports().await;
    assert_eq!(reports.report().await.state, VmState::Ready);
    vm.engine.set_down(true);
    while reports.report().await.state != VmState::EngineDown {}
    vm.engine.set_down(false);
    while reports.report().await.state != VmState::Ready {}
    vm.end().await;
}

#[tokio::test]
async fn requests_without_token_are_refused() {
    let vm = Vm::new().await;
    let (hello, image) = function(&vm.engine, "hello", |_| {});
    vm.send_version(&hello).await;
    for request in [vm.call_of(&hello, "/"), vm.request(Method::POST, "/v1/drain")] {
        let mut request = request.body(body::empty()).unwrap();
        request.headers_mut().remove("x-epsilon-pass");
        let response = vm.send(request).await;
        assert_eq!(response.status(), 401);
        assert_eq!(text(response).await, "");
    }
    assert_eq!(image.calls.load(Ordering::SeqCst), 0);
    assert_eq!(vm.report().await.state, VmState::Ready);
}

#[tokio::test]
async fn collectors_read_metrics_on_a_listener_of_their_own() {
    let vm = Vm::with(", metrics: '127.0.0.1:0'").await;
    let mut connection = connect(vm.metrics.unwrap()).await;
    let request = http::Request::builder().uri("/metrics").header("host", "vm");
    let request = request.body(body::empty()).unwrap();
    let response = connection.sender.send_request(request).await.unwrap();
    let metrics = text(response).await;
    assert!(metrics.contains("\nepsilon_engine_up 1\n"), "{metrics}");
    vm.end().await;
}
