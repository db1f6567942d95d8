//! Faults: slow and failing starts, crashes, callers who disconnect, calls that never end, an
//! engine that hangs.

use crate::{
    support::{World, call, code, one, text, until},
    wrapper::Load,
};
use epsilon_api::{
    body::{self, BodyProgress},
    error::VmError,
    function::Version,
    vm::Call,
};
use epsilon_vm_agent::engine::{
    Exit,
    fake::{FakeEngine, Fault, Verb},
};
use futures_util::future::join_all;
use http_body_util::BodyExt;
use std::{
    io,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

#[tokio::test]
async fn load_error_fails_waiting_calls_without_start_for_each() {
    let world = World::new().await;
    let (version, image) = world.function("broken", Load::Throws, |_| {});
    let answers = join_all((0..20).map(|_| world.get(&version, "/"))).await;
    assert!(answers.iter().all(|answer| code(answer) == "FUNCTION_INIT_FAILED"), "{answers:?}");
    let Err(VmError::InitFailed { detail, .. }) = world.vm.ensure_ready(Arc::clone(&version)).await
    else {
        panic!("a broken version is not ready");
    };
    assert!(detail.contains("no such thing") && detail.contains("/app/index.js:1"), "{detail}");
    assert!(image.starts.load(Ordering::SeqCst) <= 3, "{:?}", image.starts);
    let log = world.log(&version).await.join("\n");
    assert!(log.contains("at /app/index.js:1"), "{log}");
    until(|| world.engine.containers(), Vec::is_empty).await;
    world.end().await;
}

#[tokio::test]
async fn code_that_exits_while_loading_says_how() {
    let world = World::new().await;
    let (version, _) = world.function("quitter", Load::Exits, |_| {});
    let Err(VmError::InitFailed { detail, .. }) = world.vm.ensure_ready(version).await else {
        panic!("a version that exits is not ready");
    };
    assert!(detail.contains("exit status 3") && detail.contains("giving up"), "{detail}");
}

#[tokio::test]
async fn code_that_hangs_while_loading_is_given_up() {
    let world = World::with("{start_timeout: 200ms}").await;
    let (version, _) = world.function("sleeper", Load::Hangs, |_| {});
    assert_eq!(code(&world.get(&version, "/").await), "FUNCTION_INIT_FAILED");
    until(|| world.engine.containers(), Vec::is_empty).await;
}

#[tokio::test]
async fn a_missing_image_is_no_fault_of_the_code() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    let mut other = (*version).clone();
    other.image.reference = "missing-image".into();
    assert_eq!(code(&world.get(&Arc::new(other), "/").await), "NO_CAPACITY");
}

#[tokio::test]
async fn crash_before_head_is_502_and_instance_is_replaced() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| spec.max_instances = one(1));
    assert_eq!(code(&world.get(&version, "/crash").await), "FUNCTION_CRASHED");
    world.text(&version, "/").await;
    assert_eq!(image.starts.load(Ordering::SeqCst), 2);
    let log = world.log(&version).await.join("\n");
    assert!(log.contains("ended by itself: exit status 9"), "{log}");
}

/// The agent's own log at the default level.
#[derive(Clone, Default)]
struct CapturedLog(Arc<Mutex<Vec<u8>>>);

impl io::Write for CapturedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn failures_of_each_call_are_one_log_line() {
    let written = CapturedLog::default();
    let to = written.clone();
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || to.clone());
    let _log = tracing::subscriber::set_default(log.finish());
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    let (other, _) = world.function("other", Load::Works, |_| {});
    for version in [&version, &other, &version, &version] {
        assert_eq!(code(&world.get(version, "/crash").await), "FUNCTION_CRASHED");
    }
    world.end().await;
    let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("ended by itself")).collect();
    assert_eq!(lines.len(), 2, "one of each function: {text}");
    assert!(lines[0].contains("function=hello") && lines[0].contains("exit status 9"), "{text}");
}

#[tokio::test]
async fn crash_during_body_breaks_it_and_frees_slot() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |_| {});
    let mut body = world.get(&version, "/crash-midway").await.unwrap().response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    image.gate.add_permits(1);
    assert!(body.frame().await.unwrap().is_err());
    drop(body);
    until(|| world.vm.status().calls_active, |active| *active == 0).await;
    until(|| world.engine.containers(), Vec::is_empty).await;
    world.text(&version, "/").await;
    world.end().await;
}

#[tokio::test]
async fn an_instance_that_only_hung_up_is_used_again() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |_| {});
    let answer = world.get(&version, "/hang-up").await;
    if let Ok(answer) = answer {
        assert!(answer.response.into_body().collect().await.is_err());
    }
    until(|| world.states(), |states| states == &["idle"]).await;
    world.text(&version, "/").await;
    assert_eq!(image.starts.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn call_without_answer_is_504_and_kills_its_instance() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| {
        spec.timeout = Duration::from_millis(100);
    });
    assert_eq!(code(&world.get(&version, "/forever").await), "FUNCTION_TIMEOUT");
    until(|| world.engine.containers(), Vec::is_empty).await;
    assert!(world.log(&version).await.join("").contains("`timeout` of 100ms ran out"));
    world.text(&version, "/").await;
    assert_eq!(image.starts.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn unread_stream_is_cut_at_the_timeout() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| {
        spec.timeout = Duration::from_millis(100);
    });
    let mut body = world.get(&version, "/stream").await.unwrap().response.into_body();
    assert!(body.frame().await.unwrap().is_ok());
    // The reader has stopped, and yet the slot is free. Its code ended with its connection, so
    // nothing is killed.
    until(|| world.states(), |states| states == &["idle"]).await;
    assert!(body.frame().await.unwrap().is_err());
    assert!(world.log(&version).await.join("").contains("had not read all of the answer"));
    world.text(&version, "/").await;
    assert_eq!(image.starts.load(Ordering::SeqCst), 1);
    world.end().await;
}

/// A caller that has sent only part of its body.
fn slow_upload(version: &Arc<Version>, path: &str) -> Call {
    let body = futures_util::stream::pending::<
        Result<hyper::body::Frame<bytes::Bytes>, body::BodyError>,
    >();
    let mut call = call(version, path, body::boxed(http_body_util::StreamBody::new(body)));
    *call.request.method_mut() = http::Method::POST;
    let upload = BodyProgress::default();
    upload.awaits(true);
    call.upload = Some(upload);
    call
}

#[tokio::test]
async fn slow_upload_is_the_callers_fault_and_kills_nothing() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| {
        spec.timeout = Duration::from_millis(100);
        spec.max_instances = one(1);
    });
    for _ in 0..3 {
        let answer = world.vm.call(slow_upload(&version, "/while-listened-to")).await;
        assert_eq!(code(&answer), "BODY_TOO_SLOW");
    }
    until(|| world.states(), |states| states == &["idle"]).await;
    assert!(world.log(&version).await.join("").contains("had not sent all of its body"));
    world.text(&version, "/").await;
    assert_eq!(image.starts.load(Ordering::SeqCst), 1);
    // A caller who has sent all of it is not to blame.
    let call = slow_upload(&version, "/while-listened-to");
    call.upload.as_ref().unwrap().completed();
    assert_eq!(code(&world.vm.call(call).await), "FUNCTION_TIMEOUT");
    until(|| world.engine.containers(), Vec::is_empty).await;
}

#[tokio::test]
async fn code_that_outlasts_a_slow_caller_is_killed() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |spec| {
        spec.timeout = Duration::from_millis(100);
    });
    let answer = world.vm.call(slow_upload(&version, "/forever")).await;
    assert_eq!(code(&answer), "BODY_TOO_SLOW");
    until(|| world.engine.containers(), Vec::is_empty).await;
}

#[tokio::test]
async fn timeout_in_shared_instance_lets_other_calls_end() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| {
        spec.concurrency = one(3);
        spec.max_instances = one(1);
        spec.timeout = Duration::from_millis(1000);
    });
    world.text(&version, "/").await;
    let stuck = world.get(&version, "/forever");
    let late = async {
        // Begins well after the stuck call, so it is within its own timeout when that one is cut.
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.get(&version, "/gate").await
    };
    let watch = async {
        until(|| world.states(), |states| states.contains(&"draining".to_owned())).await;
        let fresh = world.text(&version, "/").await;
        image.gate.add_permits(1);
        fresh
    };
    let (stuck, late, fresh) = tokio::join!(stuck, late, watch);
    assert_eq!(code(&stuck), "FUNCTION_TIMEOUT");
    assert_ne!(text(late.unwrap()).await, fresh, "a draining instance takes no new call");
    until(|| world.states(), |states| states == &["idle"]).await;
}

#[tokio::test]
async fn two_timeouts_in_one_instance_kill_it_once() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| {
        spec.concurrency = one(2);
        spec.max_instances = one(1);
        spec.timeout = Duration::from_millis(100);
    });
    let (a, b) = tokio::join!(world.get(&version, "/forever"), world.get(&version, "/forever"));
    assert_eq!((code(&a), code(&b)), ("FUNCTION_TIMEOUT", "FUNCTION_TIMEOUT"));
    until(|| world.engine.containers(), Vec::is_empty).await;
    assert_eq!(image.starts.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn disconnected_callers_slot_is_free_once_code_ended() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| spec.max_instances = one(1));
    tokio::select! {
            answer = world.get(&version, "/while-listened-to") => panic!("{answer:?}"),
            _ = until(|| image.running.load(Ordering::SeqCst), |running| *running == 1) => {}
    }
    until(|| world.states(), |states| states == &["idle"]).await;
    world.text(&version, "/").await;
    assert_eq!(image.starts.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn code_that_outlives_its_caller_holds_slot_until_deadline() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| {
        spec.timeout = Duration::from_millis(300);
        spec.max_instances = one(1);
    });
    world.text(&version, "/").await;
    tokio::select! {
        answer = world.get(&version, "/forever") => panic!("{answer:?}"),
        _ = until(|| image.running.load(Ordering::SeqCst), |running| *running == 1) => {}
    }
    assert_eq!(world.states(), ["busy"], "its code still runs");
    world.text(&version, "/").await;
    assert_eq!(image.starts.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn cancelled_waiting_calls_cost_nothing() {
    let world = World::with("{starts_at_once: 1, starts_per_version: 1}").await;
    let (version, image) = world.function("hello", Load::Gated, |_| {});
    tokio::select! {
            answers = join_all((0..50).map(|_| world.get(&version, "/"))) => panic!("{answers:?}"),
            _ = until(|| world.vm.status().calls_waiting, |waiting| *waiting == 50) => {}
    }
    assert_eq!(world.vm.status().calls_waiting, 0);
    image.gate.add_permits(100);
    // The one start is finished, or was cancelled before it made anything.
    until(|| world.states(), |states| states.iter().all(|state| state == "idle")).await;
    assert!(image.starts.load(Ordering::SeqCst) <= 1);
    world.end().await;
}

#[tokio::test]
async fn hung_engine_fails_start_but_no_warm_call() {
    let world = World::new().await;
    let (warm, _) = world.function("warm", Load::Works, |_| {});
    let (cold, _) = world.function("cold", Load::Works, |_| {});
    world.text(&warm, "/").await;
    world.engine.script(Verb::Create, Fault::Hang);
    let (refused, ()) = tokio::join!(world.get(&cold, "/"), async {
        for _ in 0..10 {
            world.text(&warm, "/").await;
        }
    });
    assert_eq!(code(&refused), "NO_CAPACITY");
    world.text(&cold, "/").await;
}

#[tokio::test]
async fn a_slow_engine_is_waited_for() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    world.engine.script(Verb::Create, Fault::Slow(FakeEngine::TIMEOUT / 2));
    world.engine.script(Verb::Start, Fault::Slow(FakeEngine::TIMEOUT / 2));
    let answer = world.get(&version, "/").await.unwrap();
    assert!(answer.spent.start.unwrap().create >= FakeEngine::TIMEOUT / 2);
}

#[tokio::test]
async fn refused_removal_is_retried_and_memory_held() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |spec| {
        spec.timeout = Duration::from_millis(50);
    });
    world.engine.script(Verb::Remove, Fault::Refuse);
    world.engine.script(Verb::Remove, Fault::Refuse);
    assert_eq!(code(&world.get(&version, "/forever").await), "FUNCTION_TIMEOUT");
    until(|| world.vm.status().memory_used_bytes.get(), |used| *used == 0).await;
    assert!(world.engine.containers().is_empty());
    assert!(world.engine.used(Verb::Remove) >= 3);
}

#[tokio::test]
async fn engine_restart_under_load_leaves_no_call_hanging() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| spec.max_instances = one(4));
    let running = join_all((0..4).map(|_| world.get(&version, "/while-listened-to")));
    let (codes, ()) = tokio::join!(running, async {
        until(|| image.running.load(Ordering::SeqCst), |running| *running == 4).await;
        world.engine.crash_all(Exit { code: 255, out_of_memory: false });
    });
    assert!(codes.iter().all(|answer| code(answer) == "FUNCTION_CRASHED"), "{codes:?}");
    world.text(&version, "/").await;
}

#[tokio::test]
async fn egress_is_refused_without_a_firewall() {
    let engine = FakeEngine::new();
    for _ in 0..2 {
        engine.script(Verb::EnsureFirewall, Fault::Refuse);
    }
    let world = World::on(engine, tempfile::tempdir().unwrap(), "{}").await;
    let (egress, _) = world.function("egress", Load::Works, |_| {});
    let (none, _) = world.function("none", Load::Works, |spec| {
        spec.network = epsilon_api::function::Network::None;
    });
    let refused = world.get(&egress, "/").await;
    let Err(VmError::NoCapacity { cause, .. }) = &refused else { panic!("{refused:?}") };
    assert!(cause.to_string().contains("dangerous_allow_metadata"), "{cause}");
    world.text(&none, "/").await;
    world.text(&egress, "/").await; // the third attempt to close it worked
}

#[tokio::test]
async fn a_dropped_answer_settles_by_itself() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| spec.max_instances = one(1));
    let answer = world.vm.call(call(&version, "/stream", body::empty())).await.unwrap();
    drop(answer);
    until(|| world.states(), |states| states == &["idle"]).await;
    assert_eq!(image.starts.load(Ordering::SeqCst), 1);
}
