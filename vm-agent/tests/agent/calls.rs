//! Successful calls, and waiting ones: slots, queue, limits.

use crate::{
    support::{World, call, code, one, text, until},
    wrapper::Load,
};
use epsilon_api::{body, error::CallError, units::Bytes, vm::Held};
use futures_util::future::join_all;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn later_calls_reuse_instance_and_connection() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |_| {});
    let answer = world.get(&version, "/").await.unwrap();
    assert!(answer.spent.start.is_some());
    let first = text(answer).await;
    for _ in 0..20 {
        let answer = world.get(&version, "/").await.unwrap();
        assert!(answer.spent.start.is_none());
        assert_eq!(text(answer).await, first);
    }
    assert_eq!(image.starts.load(Ordering::SeqCst), 1);
    assert_eq!(image.connections.load(Ordering::SeqCst), 1, "keep-alive works");
    assert_eq!(world.vm.status().memory_used_bytes, Bytes::mib(256));
    world.end().await;
}

#[tokio::test]
async fn instance_gets_request_id_and_remaining_time() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |spec| {
        spec.timeout = Duration::from_millis(2500);
    });
    let call = call(&version, "/headers", body::empty());
    let id = call.request_id.clone();
    assert_eq!(text(world.vm.call(call).await.unwrap()).await, format!("{id} 2500"));
}

#[tokio::test]
async fn bodies_stream_both_ways_and_slot_is_held() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| spec.max_instances = one(1));
    let sent = "x".repeat(3 << 20);
    let answer = world.vm.call(call(&version, "/echo", body::full(sent.clone()))).await.unwrap();
    assert_eq!(text(answer).await, sent);

    let answer = world.get(&version, "/stream").await.unwrap();
    assert_eq!(world.states(), ["busy"], "the head alone frees nothing");
    image.gate.add_permits(1);
    assert_eq!(text(answer).await, "first second");
    assert_eq!(world.states(), ["idle"]);
}

#[tokio::test]
async fn thrown_error_is_answered_by_platform_and_frees_slot() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| spec.max_instances = one(1));
    for _ in 0..3 {
        assert_eq!(code(&world.get(&version, "/throw").await), "FUNCTION_ERROR");
    }
    world.text(&version, "/").await;
    assert_eq!(image.starts.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn upgrade_holds_its_slot_until_copy_ends() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    let mut call = call(&version, "/upgrade", body::empty());
    call.request.headers_mut().insert("connection", "upgrade".parse().unwrap());
    call.request.headers_mut().insert("upgrade", "echo".parse().unwrap());
    let mut response = world.vm.call(call).await.unwrap().response;
    assert_eq!(response.status(), 101);
    let held = response.extensions_mut().remove::<Held>().unwrap();
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let mut back = [0; 5];
    stream.write_all(b"hello").await.unwrap();
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
    assert_eq!(world.states(), ["busy"]);
    drop((stream, held));
    until(|| world.states(), |states| states == &["idle"]).await;
}

#[tokio::test]
async fn waiting_call_gets_the_slot_that_frees_first() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| spec.max_instances = one(1));
    world.text(&version, "/").await;
    let calls = join_all((0..5).map(|_| world.text(&version, "/gate")));
    let (answers, ()) = tokio::join!(calls, async {
        until(|| world.vm.status().calls_waiting, |waiting| *waiting == 4).await;
        image.gate.add_permits(5);
    });
    assert_eq!(answers.len(), 5);
    assert_eq!(image.starts.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn thousand_concurrent_calls_are_answered_or_refused() {
    let world = World::with("{queue_wait: 60s, queue_depth: 700}").await;
    let (version, image) = world.function("hello", Load::Works, |spec| spec.max_instances = one(2));
    let calls = (0..1000).map(|_| async {
        match world.get(&version, "/").await {
            Ok(answer) => {
                text(answer).await;
                "OK"
            }
            Err(err) => {
                assert!(err.verdict().retry_after.is_some());
                err.verdict().code
            }
        }
    });
    let codes = join_all(calls).await;
    let answered = codes.iter().filter(|code| **code == "OK").count();
    let refused = codes.iter().filter(|code| **code == "CONCURRENCY_LIMIT").count();
    assert_eq!((answered, refused), (700, 300));
    assert!(image.starts.load(Ordering::SeqCst) <= 2);
    assert_eq!(image.most_in_one.load(Ordering::SeqCst), 1);
    assert_eq!(world.vm.status().calls_waiting, 0);
    world.end().await;
}

#[tokio::test]
async fn the_wait_is_bounded() {
    let world = World::with("{queue_wait: 50ms}").await;
    let (version, image) = world.function("hello", Load::Works, |spec| spec.max_instances = one(1));
    world.text(&version, "/").await;
    let (slow, refused) = tokio::join!(world.get(&version, "/gate"), async {
        until(|| world.states(), |states| states == &["busy"]).await;
        let refused = world.get(&version, "/").await;
        image.gate.add_permits(1);
        refused
    });
    assert_eq!((code(&slow), code(&refused)), ("OK", "CONCURRENCY_LIMIT"));
}

#[tokio::test]
async fn start_may_take_longer_than_queue_wait() {
    let world = World::with("{queue_wait: 10ms}").await;
    let (version, image) = world.function("hello", Load::Gated, |_| {});
    let (answer, ()) = tokio::join!(world.get(&version, "/"), async {
        until(|| image.starts.load(Ordering::SeqCst), |starts| *starts == 1).await;
        tokio::time::sleep(Duration::from_millis(50)).await; // several times `queue_wait`
        image.gate.add_permits(1);
    });
    assert_eq!(code(&answer), "OK");
}

#[tokio::test]
async fn concurrency_shares_an_instance_up_to_its_limit() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| {
        spec.concurrency = one(10);
        spec.max_instances = one(2);
    });
    let calls = join_all((0..20).map(|_| world.get(&version, "/gate")));
    let (answers, ()) = tokio::join!(calls, async {
        until(|| image.running.load(Ordering::SeqCst), |running| *running == 20).await;
        image.gate.add_permits(20);
    });
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(image.most_in_one.load(Ordering::SeqCst), 10);
    assert_eq!(image.starts.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn never_more_starts_at_once_than_the_vm_allows() {
    let world = World::with("{starts_at_once: 2, starts_per_version: 2}").await;
    let (version, image) = world.function("hello", Load::Gated, |_| {});
    let calls = join_all((0..10).map(|_| world.get(&version, "/gate")));
    let (answers, ()) = tokio::join!(calls, async {
        until(|| image.starts.load(Ordering::SeqCst), |starts| *starts == 2).await;
        assert_eq!(world.engine.containers().len(), 2);
        image.gate.add_permits(1000);
    });
    assert!(answers.iter().all(Result::is_ok));
    assert!(image.starts.load(Ordering::SeqCst) <= 10);
}

#[tokio::test]
async fn idle_instance_of_lowest_value_is_evicted() {
    let world = World::with("{memory: 768MiB}").await;
    let (old, _) = world.function("old", Load::Works, |_| {});
    let (ready, _) = world.function("ready", Load::Works, |spec| spec.min_instances = 1);
    let (young, _) = world.function("young", Load::Works, |_| {});
    world.vm.ensure_ready(Arc::clone(&ready)).await.unwrap();
    // Called much more often, and so of higher value than one start that happened to take long.
    for _ in 0..300 {
        world.text(&old, "/").await;
    }
    world.text(&young, "/").await;
    let (next, _) = world.function("next", Load::Works, |_| {});
    world.text(&next, "/").await;
    let left = world.vm.status().instances.into_iter().map(|one| one.function.to_string());
    let mut left: Vec<_> = left.collect();
    left.sort_unstable();
    assert_eq!(left, ["next", "old", "ready"]);
    assert!((world.metric("epsilon_evictions_total") - 1.0).abs() < f64::EPSILON);
    world.end().await;
}

#[tokio::test]
async fn without_memory_wait_is_bounded_impossible_fails_immediately() {
    let world = World::with("{memory: 256MiB, queue_wait: 100ms}").await;
    let (busy, image) = world.function("busy", Load::Works, |_| {});
    let (other, _) = world.function("other", Load::Works, |_| {});
    let (huge, _) = world.function("huge", Load::Works, |spec| spec.memory = Bytes::mib(512));
    let (ran, ()) = tokio::join!(world.get(&busy, "/gate"), async {
        until(|| image.running.load(Ordering::SeqCst), |running| *running == 1).await;
        assert_eq!(code(&world.get(&other, "/").await), "NO_CAPACITY");
        assert_eq!(code(&world.get(&huge, "/").await), "NO_CAPACITY");
        image.gate.add_permits(1);
    });
    text(ran.unwrap()).await;
    world.text(&other, "/").await;
}

#[tokio::test]
async fn first_call_waits_for_memory_of_busy_instance() {
    let world = World::with("{memory: 256MiB, starts_at_once: 1}").await;
    let (busy, image) = world.function("busy", Load::Works, |_| {});
    let (other, _) = world.function("other", Load::Works, |_| {});
    let (ran, waited, ()) =
        tokio::join!(world.text(&busy, "/gate"), world.get(&other, "/"), async {
            until(|| world.vm.status().calls_waiting, |waiting| *waiting == 1).await;
            until(|| image.running.load(Ordering::SeqCst), |running| *running == 1).await;
            image.gate.add_permits(1);
        });
    assert_eq!(code(&waited), "OK");
    assert_ne!(text(waited.unwrap()).await, ran);
    world.end().await;
}

#[tokio::test]
async fn a_waiting_call_profits_from_room_that_others_leave() {
    let world = World::with("{memory: 512MiB}").await;
    let (mine, gate) = world.function("mine", Load::Works, |_| {});
    let (other, others_gate) = world.function("other", Load::Works, |_| {});
    let (mine_busy, other_busy, waited, ()) = tokio::join!(
        world.text(&mine, "/gate"),
        world.text(&other, "/gate"),
        async {
            until(|| world.states(), |states| states == &["busy"; 2]).await;
            let answer = world.text(&mine, "/").await;
            gate.gate.add_permits(1);
            answer
        },
        async {
            let busy = || world.states().iter().filter(|state| *state == "busy").count();
            until(busy, |busy| *busy == 2).await;
            until(|| world.vm.status().calls_waiting, |waiting| *waiting == 1).await;
            // Only now can the other instance be evicted; no event wakes the waiting call.
            others_gate.gate.add_permits(1);
        }
    );
    assert!(waited != mine_busy && waited != other_busy);
}

#[tokio::test]
async fn a_body_over_the_limit_is_the_callers_fault() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    let limit = Bytes(10);
    let too_large = futures_util::stream::iter([Err::<hyper::body::Frame<bytes::Bytes>, _>(
        body::BodyTooLarge { limit },
    )]);
    let body = body::boxed(http_body_util::StreamBody::new(too_large));
    let mut call = call(&version, "/gate", body);
    *call.request.method_mut() = http::Method::POST;
    let answer = world.vm.call(call).await;
    assert!(matches!(answer, Err(CallError::BodyTooLarge { limit: Bytes(10) })), "{answer:?}");
}

#[tokio::test]
async fn log_lines_carry_their_call() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    let call = call(&version, "/log", body::empty());
    let request_id = Some(call.request_id.clone());
    let answer = world.vm.call(call).await.unwrap();
    drop(answer.response.into_body().collect().await);
    let query = epsilon_api::log::LogQuery { request_id, follow: true, ..Default::default() };
    let mut lines = world.vm.logs(&version.function, query);
    let line = futures_util::StreamExt::next(&mut lines).await.unwrap();
    assert_eq!((line.message.as_str(), line.version), ("said", version.number));
    assert_eq!(world.log(&version).await, ["raw line", "said"]);
}
