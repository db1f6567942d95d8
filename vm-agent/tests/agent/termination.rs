//! The end of instances: SIGTERM, the function's grace period for its shutdown hooks, then the
//! kill.

use crate::{
    support::{World, one, until},
    wrapper::Load,
};
use epsilon_vm_agent::engine::fake::Verb;
use std::{sync::atomic::Ordering, time::Duration};
use tokio::time::Instant;

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn idle_instance_finishes_shutdown_hooks_and_logs_them() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::CleansUp, |spec| {
        (spec.idle_timeout, spec.stop_grace) = (Some(Duration::from_millis(50)), LONG);
    });
    world.text(&version, "/").await;
    until(|| world.engine.used(Verb::Terminate), |signals| *signals == 1).await;
    assert_eq!(world.states(), ["stopping"], "it has its grace period");
    image.gate.add_permits(1);
    until(|| world.engine.containers(), Vec::is_empty).await;
    assert_eq!(world.log(&version).await, ["sigterm", "cleanup done"]);
    world.end().await;
}

#[tokio::test]
async fn slow_shutdown_hook_is_killed_and_logged() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::CleansUp, |spec| {
        spec.idle_timeout = Some(Duration::from_millis(50));
        spec.stop_grace = Duration::from_millis(100);
    });
    world.text(&version, "/").await;
    until(|| world.engine.containers(), |left| left.is_empty()).await;
    let log = world.log(&version).await;
    assert!(log.iter().any(|line| line.contains("`stopGrace`")), "{log:?}");
    world.end().await;
}

#[tokio::test]
async fn retirement_and_shutdown_send_sigterm_before_kill() {
    let world = World::new().await;
    let hooks = |name| world.function(name, Load::CleansUp, |spec| spec.stop_grace = LONG);
    let (old, image) = hooks("old");
    let (other, last) = hooks("other");
    world.text(&old, "/").await;
    world.text(&other, "/").await;
    world.vm.retire(&old.id());
    until(|| world.engine.used(Verb::Terminate), |signals| *signals == 1).await;
    image.gate.add_permits(1);
    until(|| world.engine.containers().len(), |left| *left == 1).await;
    last.gate.add_permits(1);
    world.agent.shutdown(Duration::ZERO).await;
    assert_eq!(world.engine.used(Verb::Terminate), 2);
    assert_eq!(world.engine.containers(), [""; 0]);
}

#[tokio::test]
async fn timed_out_instance_gets_no_sigterm() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::CleansUp, |spec| {
        (spec.timeout, spec.stop_grace) = (Duration::from_millis(100), LONG);
    });
    drop(world.get(&version, "/forever").await.unwrap_err());
    until(|| world.engine.containers(), Vec::is_empty).await;
    assert_eq!(world.engine.used(Verb::Terminate), 0);
    world.end().await;
}

#[tokio::test]
async fn evicted_instance_gives_memory_back_soon() {
    let world = World::with("{memory: 256MiB, cells_max: 0}").await;
    let (first, _) = world.function("first", Load::CleansUp, |spec| spec.stop_grace = LONG);
    let (second, image) = world.function("second", Load::Works, |spec| spec.max_instances = one(1));
    world.text(&first, "/").await;
    let began = Instant::now();
    world.text(&second, "/").await;
    assert!(began.elapsed() < LONG / 6, "{:?}", began.elapsed());
    assert_eq!(image.starts.load(Ordering::SeqCst), 1);
    world.end().await;
}
