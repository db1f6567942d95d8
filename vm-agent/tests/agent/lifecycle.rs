//! Instances over time: ready, idle, retired, drained.

use crate::{
    support::{World, code, one, until},
    wrapper::Load,
};
use epsilon_api::vm::VmState;
use epsilon_vm_agent::engine::fake::{Fault, Verb};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

#[tokio::test]
async fn idle_instances_go_and_the_minimum_stays() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| {
        spec.idle_timeout = Some(Duration::from_millis(200));
        spec.min_instances = 1;
    });
    world.vm.ensure_ready(Arc::clone(&version)).await.unwrap();
    let calls = futures_util::future::join_all((0..3).map(|_| world.get(&version, "/gate")));
    let (answers, ()) = tokio::join!(calls, async {
        until(|| image.running.load(Ordering::SeqCst), |running| *running == 3).await;
        image.gate.add_permits(3);
    });
    drop(answers);
    until(|| world.engine.containers().len(), |count| *count == 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await; // longer than `idleTimeout`
    assert_eq!(world.states(), ["idle"]);
    world.end().await;
}

#[tokio::test]
async fn ready_means_the_minimum_and_at_least_one() {
    let world = World::new().await;
    let (none, _) = world.function("none", Load::Works, |_| {});
    let (three, _) = world.function("three", Load::Works, |spec| spec.min_instances = 3);
    world.vm.ensure_ready(Arc::clone(&none)).await.unwrap();
    world.vm.ensure_ready(Arc::clone(&three)).await.unwrap();
    world.vm.ensure_ready(three).await.unwrap();
    assert_eq!(world.states(), ["idle"; 4]);
}

#[tokio::test]
async fn a_crashed_instance_of_the_minimum_is_replaced() {
    let world = World::with("{reconcile_every: 50ms}").await;
    let (version, image) = world.function("hello", Load::Works, |spec| spec.min_instances = 2);
    world.vm.ensure_ready(Arc::clone(&version)).await.unwrap();
    assert_eq!(code(&world.get(&version, "/crash").await), "FUNCTION_CRASHED");
    until(|| image.starts.load(Ordering::SeqCst), |starts| *starts == 3).await;
    until(|| world.states(), |states| states == &["idle"; 2]).await;
    world.end().await;
}

#[tokio::test]
async fn the_minimum_of_broken_code_does_not_loop() {
    let world = World::with("{reconcile_every: 50ms}").await;
    let (version, image) = world.function("broken", Load::Throws, |spec| spec.min_instances = 2);
    assert!(world.vm.ensure_ready(Arc::clone(&version)).await.is_err());
    let before = image.starts.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(500)).await; // ten rounds of the timer
    assert!(image.starts.load(Ordering::SeqCst) <= before + 2);
}

#[tokio::test]
async fn retired_version_finishes_calls_and_stops() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| spec.min_instances = 2);
    world.vm.ensure_ready(Arc::clone(&version)).await.unwrap();
    let (answer, ()) = tokio::join!(world.get(&version, "/gate"), async {
        until(|| image.running.load(Ordering::SeqCst), |running| *running == 1).await;
        world.vm.retire(&version.id());
        until(|| world.engine.containers().len(), |count| *count == 1).await;
        image.gate.add_permits(1);
    });
    drop(answer.unwrap());
    until(|| world.engine.containers(), Vec::is_empty).await;
    until(|| world.metric("epsilon_instance_starts_total"), |count| *count == 0.0).await;
    // A call that was already sent when the version was retired is not lost.
    world.text(&version, "/").await;
}

#[tokio::test]
async fn drained_vm_refuses_calls_empties_and_can_undrain() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| spec.min_instances = 2);
    world.vm.ensure_ready(Arc::clone(&version)).await.unwrap();
    let (answer, ()) = tokio::join!(world.get(&version, "/gate"), async {
        until(|| image.running.load(Ordering::SeqCst), |running| *running == 1).await;
        world.vm.drain(true);
        assert_eq!(world.vm.status().state, VmState::Draining);
        assert_eq!(code(&world.get(&version, "/").await), "NO_CAPACITY");
        image.gate.add_permits(1);
    });
    drop(answer.unwrap());
    until(|| world.engine.containers(), Vec::is_empty).await;
    world.vm.drain(false);
    until(|| world.states(), |states| states == &["idle"; 2]).await;
    world.end().await;
}

#[tokio::test]
async fn same_version_number_with_another_image_replaces_pool() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |spec| spec.max_instances = one(1));
    let first = world.text(&version, "/").await;
    let mut other = (*version).clone();
    other.image.digest = "sha256:other".into();
    assert_ne!(world.text(&Arc::new(other), "/").await, first);
    until(|| world.engine.containers().len(), |count| *count == 1).await;
}

#[tokio::test]
async fn shutdown_waits_for_calls_and_cuts_after_grace() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    let vm = Arc::clone(&world.vm);
    let call = crate::support::call(&version, "/forever", epsilon_api::body::empty());
    let running = tokio::spawn(async move { vm.call(call).await.map(drop) });
    until(|| world.states(), |states| states == &["busy"]).await;
    let began = tokio::time::Instant::now();
    world.agent.shutdown(Duration::from_millis(100)).await;
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(running.await.unwrap().is_err());
    assert!(world.engine.containers().is_empty());
}

#[tokio::test]
async fn drain_ends_pending_ready_request_without_more_starts() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Gated, |_| {});
    let (ready, ()) = tokio::join!(
        tokio::time::timeout(Duration::from_secs(5), world.vm.ensure_ready(Arc::clone(&version))),
        async {
            until(|| image.starts.load(Ordering::SeqCst), |starts| *starts == 1).await;
            world.vm.drain(true);
            until(|| world.engine.containers(), Vec::is_empty).await;
        }
    );
    let err = ready.expect("it does not wait in vain").unwrap_err();
    assert_eq!(err.verdict().code, "NO_CAPACITY");
    until(|| world.states(), Vec::is_empty).await;
    assert!(world.engine.used(Verb::Remove) <= 2, "no useless start is made");
    world.end().await;
}

#[tokio::test]
async fn cancelled_ready_request_does_not_affect_another() {
    let world = World::with("{starts_at_once: 1, starts_per_version: 1}").await;
    let (first, gate) = world.function("first", Load::Gated, |_| {});
    let (version, _) = world.function("hello", Load::Works, |_| {});
    let holds_the_start = world.vm.ensure_ready(first);
    let stays = world.vm.ensure_ready(Arc::clone(&version));
    let limit = Duration::from_secs(5);
    let (held, stayed, ()) =
        tokio::join!(holds_the_start, tokio::time::timeout(limit, stays), async {
            let leaves = world.vm.ensure_ready(Arc::clone(&version));
            drop(tokio::time::timeout(Duration::from_millis(50), leaves).await);
            gate.gate.add_permits(1);
        });
    held.unwrap();
    stayed.expect("it is still requested").unwrap();
}

#[tokio::test]
async fn minimum_of_crashing_code_does_not_loop() {
    let world = World::with("{reconcile_every: 50ms}").await;
    let (version, image) =
        world.function("brittle", Load::WorksThenExits, |spec| spec.min_instances = 1);
    drop(world.vm.ensure_ready(Arc::clone(&version)).await);
    tokio::time::sleep(Duration::from_millis(900)).await; // eighteen rounds of the timer
    assert!(image.starts.load(Ordering::SeqCst) <= 2, "{:?}", image.starts);
}

/// An engine removes one container after the other.
#[tokio::test]
async fn a_stop_lasts_as_long_as_instances_end() {
    let world = World::with("{remove_timeout: 1s, cells_max: 0}").await;
    let (version, _) = world.function("hello", Load::Works, |spec| spec.min_instances = 10);
    world.vm.ensure_ready(version).await.unwrap();
    for n in 1..=10 {
        world.engine.script(Verb::Remove, Fault::Slow(n * Duration::from_millis(200)));
    }
    world.end().await;
}

#[tokio::test]
async fn undeletable_container_does_not_keep_the_rest() {
    let world = World::with("{remove_timeout: 1s, cells_max: 0}").await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    world.text(&version, "/").await;
    world.engine.script(Verb::RemoveNetwork, Fault::Refuse);
    let engine = world.engine.clone();
    world.agent.shutdown(Duration::ZERO).await;
    assert_eq!((engine.networks().len(), engine.used(Verb::RemoveFirewall)), (1, 1));
}

#[tokio::test]
async fn a_container_that_stays_holds_its_memory() {
    let world = World::with("{remove_timeout: 1s, cells_max: 0}").await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    world.text(&version, "/").await;
    for _ in 0..100 {
        world.engine.script(Verb::Remove, Fault::Refuse);
    }
    world.engine.script(Verb::RemoveNetwork, Fault::Refuse);
    let engine = world.engine.clone();
    world.agent.shutdown(Duration::ZERO).await;
    assert_eq!((engine.containers().len(), engine.used(Verb::RemoveFirewall)), (1, 0));
}
