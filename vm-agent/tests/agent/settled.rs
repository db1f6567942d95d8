//! Calls whose handler outlasts their answer: their slot stays taken until it has settled, or their
//! timeout is over.

use crate::{
    support::{World, one, text, until},
    wrapper::Load,
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

#[tokio::test]
async fn work_after_the_answer_holds_its_slot() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |_| {});
    let first = world.text(&version, "/after").await;
    assert_eq!(world.states(), ["busy"]);
    let second = world.text(&version, "/after").await;
    assert_ne!(first, second, "with `concurrency: 1`, one instance runs one call");
    assert_eq!(image.most_in_one.load(Ordering::SeqCst), 1);
    image.gate.add_permits(2);
    until(|| world.states(), |states| states == &["idle", "idle"]).await;
    world.text(&version, "/").await;
    assert_eq!(image.starts.load(Ordering::SeqCst), 2);
    world.end().await;
}

#[tokio::test]
async fn concurrent_calls_in_one_instance_end_separately() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| {
        (spec.concurrency, spec.max_instances) = (one(2), one(1));
    });
    world.text(&version, "/after").await;
    world.text(&version, "/after").await;
    let third = tokio::spawn({
        let vm = Arc::clone(&world.vm);
        let version = Arc::clone(&version);
        async move { vm.call(crate::support::call(&version, "/", epsilon_api::body::empty())).await }
    });
    until(|| world.vm.status().calls_waiting, |waiting| *waiting == 1).await;
    image.gate.add_permits(1);
    text(third.await.unwrap().unwrap()).await;
    until(|| world.vm.status().calls_active, |active| *active == 1).await;
    image.gate.add_permits(1);
    until(|| world.vm.status().calls_active, |active| *active == 0).await;
    assert_eq!(image.most_in_one.load(Ordering::SeqCst), 2);
    world.end().await;
}

#[tokio::test]
async fn work_after_the_answer_ends_with_the_timeout() {
    let world = World::new().await;
    let (version, image) =
        world.function("hello", Load::Works, |spec| spec.timeout = Duration::from_millis(300));
    world.text(&version, "/after").await;
    until(|| world.engine.containers(), Vec::is_empty).await;
    assert_eq!(image.running.load(Ordering::SeqCst), 1, "its code had not ended");
    let log = world.log(&version).await;
    let expected = "work after the answer was stopped: the function's `timeout` of 300ms ran out";
    assert!(log.iter().any(|line| line == expected), "{log:?}");
    world.end().await;
}

#[tokio::test]
async fn retired_version_finishes_work_after_answers() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |_| {});
    world.text(&version, "/after").await;
    world.vm.retire(&version.id());
    assert_eq!(world.states(), ["busy"]);
    image.gate.add_permits(1);
    until(|| world.engine.containers(), Vec::is_empty).await;
    assert_eq!(image.running.load(Ordering::SeqCst), 0);
    world.end().await;
}

#[tokio::test]
async fn work_cut_by_shutdown_is_logged() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    world.text(&version, "/after").await;
    world.agent.shutdown(Duration::ZERO).await;
    let next = World::on(world.engine, world.folder, "{}").await;
    let log = next.log(&version).await;
    let expected = "work after the answer was stopped: its instance had to stop";
    assert!(log.iter().any(|line| line == expected), "{log:?}");
    next.end().await;
}

#[tokio::test]
async fn call_that_ends_with_its_answer_is_not_polled() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |_| {});
    for _ in 0..10 {
        world.text(&version, "/").await;
    }
    assert_eq!(image.health.load(Ordering::SeqCst), 0);
    world.end().await;
}
