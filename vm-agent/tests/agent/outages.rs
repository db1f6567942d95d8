//! An engine that is away, and bugs of our own: neither may leave anything behind or take the agent with it.

use crate::{
    support::{World, code, one, until},
    wrapper::Load,
};
use epsilon_vm_agent::engine::fake::{Fault, Verb};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

#[tokio::test]
async fn calls_while_the_engine_is_down_leave_nothing_that_waits_for_its_return() {
    let world = World::with("{memory: 512MiB}").await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    world.engine.set_down(true);
    for _ in 0..20 {
        let answer = world.get(&version, "/").await;
        assert_eq!(code(&answer), "NO_CAPACITY");
        let text = answer.unwrap_err().to_string();
        assert!(!text.contains("memory"), "{text}");
    }
    until(|| world.states(), Vec::is_empty).await;
    assert_eq!(world.vm.status().memory_used_bytes.get(), 0);
    world.engine.set_down(false);
    world.text(&version, "/").await;
    world.end().await;
}

#[tokio::test]
async fn a_container_whose_creation_was_not_answered_is_removed_later() {
    let world = World::with("{reconcile_every: 50ms}").await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    world.engine.script(Verb::Attach, Fault::Hang);
    world.engine.script(Verb::Remove, Fault::Hang);
    assert_eq!(code(&world.get(&version, "/").await), "NO_CAPACITY");
    until(|| world.engine.containers(), Vec::is_empty).await;
    world.end().await;
}

#[tokio::test]
async fn a_start_that_panics_fails_its_calls_and_is_cleared_away() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |spec| spec.max_instances = one(1));
    world.engine.script(Verb::Attach, Fault::Panic);
    assert_eq!(code(&world.get(&version, "/").await), "NO_CAPACITY");
    until(|| world.engine.containers(), Vec::is_empty).await;
    until(|| world.vm.status().memory_used_bytes.get(), |used| *used == 0).await;
    world.text(&version, "/").await;
    world.end().await;
}

#[tokio::test]
async fn a_sweep_that_panics_is_not_the_last() {
    let world = World::with("{reconcile_every: 50ms}").await;
    world.engine.script(Verb::List, Fault::Panic);
    let seen = world.engine.used(Verb::List);
    until(|| world.engine.used(Verb::List), |used| *used >= seen + 3).await;
    world.end().await;
}

#[tokio::test]
async fn what_ended_but_cannot_be_removed_holds_no_memory() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    world.text(&version, "/").await;
    for _ in 0..6 {
        world.engine.script(Verb::Remove, Fault::Refuse);
    }
    world.engine.crash(&world.engine.containers()[0]);
    until(|| world.vm.status().memory_used_bytes.get(), |used| *used == 0).await;
    assert_eq!(world.engine.containers().len(), 1, "its memory came back first");
    until(|| world.engine.containers(), Vec::is_empty).await;
}

#[tokio::test]
async fn an_exit_is_only_what_the_engine_says_is_one() {
    let world = World::with("{reconcile_every: 50ms}").await;
    let (version, image) = world.function("hello", Load::Works, |_| {});
    world.engine.script(Verb::Wait, Fault::Refuse);
    let first = world.text(&version, "/").await;
    until(|| world.engine.used(Verb::Wait), |used| *used >= 2).await;
    assert_eq!(world.text(&version, "/").await, first);
    assert_eq!(image.starts.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_network_that_somebody_removed_is_made_again() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    let network = world.engine.networks().remove(0);
    epsilon_vm_agent::engine::Engine::remove_network(&world.engine, &network).await.unwrap();
    world.text(&version, "/").await;
    world.end().await;
}

#[tokio::test]
async fn an_image_that_somebody_removed_is_looked_for_again() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| {
        spec.idle_timeout = Duration::from_millis(20);
    });
    world.text(&version, "/").await;
    until(|| world.engine.containers(), Vec::is_empty).await;
    world.engine.remove_image("hello");
    assert_eq!(code(&world.get(&version, "/").await), "NO_CAPACITY");
    world.engine.add_image("hello", image.program());
    world.text(&version, "/").await;
}

#[tokio::test]
async fn a_pull_that_hangs_takes_no_start_from_others() {
    let world = World::with("{starts_at_once: 1, starts_per_version: 1}").await;
    let (slow, _) = world.function("slow", Load::Works, |_| {});
    let (quick, _) = world.function("quick", Load::Works, |_| {});
    world.engine.script(Verb::EnsureImage, Fault::Slow(Duration::from_secs(30)));
    tokio::select! {
        answer = world.get(&slow, "/") => panic!("{answer:?}"),
        () = async {
            until(|| world.engine.used(Verb::EnsureImage), |used| *used == 1).await;
            world.text(&quick, "/").await;
        } => {}
    }
}

#[tokio::test]
async fn those_who_wait_are_told_when_the_agent_ends() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Gated, |_| {});
    let vm = Arc::clone(&world.vm);
    let call = crate::support::call(&version, "/", epsilon_api::body::empty());
    let waiting = tokio::spawn(async move { vm.call(call).await });
    until(|| image.starts.load(Ordering::SeqCst), |starts| *starts == 1).await;
    world.agent.shutdown(Duration::from_millis(50)).await;
    let answer = tokio::time::timeout(Duration::from_secs(2), waiting).await;
    assert_eq!(code(&answer.expect("told at once").unwrap()), "NO_CAPACITY");
}
