//! Idle instances are frozen after a while and thawed by their next call.

use crate::{
    support::{World, until},
    wrapper::Load,
};
use epsilon_api::function::Idle;
use epsilon_vm_agent::engine::fake::Verb;
use std::{sync::atomic::Ordering, time::Duration};

const SETTINGS: &str = "{freeze_after: 50ms}";

#[tokio::test]
async fn idle_instance_is_frozen_and_thawed_by_next_call() {
    let world = World::with(SETTINGS).await;
    let (version, image) = world.function("hello", Load::Works, |_| {});
    for _ in 0..3 {
        world.text(&version, "/").await;
        assert_eq!(world.engine.frozen(), [""; 0], "it serves");
        until(|| world.engine.frozen().len(), |frozen| *frozen == 1).await;
        assert_eq!(world.states(), ["idle"]);
    }
    assert_eq!(image.starts.load(Ordering::SeqCst), 1);
    assert_eq!(world.engine.used(Verb::Freezer), 1, "one lookup");
    world.end().await;
}

#[tokio::test]
async fn one_that_works_between_its_calls_is_not_frozen() {
    let world = World::with(SETTINGS).await;
    let (running, _) = world.function("running", Load::Works, |spec| spec.idle = Idle::Run);
    let (other, _) = world.function("other", Load::Works, |_| {});
    world.text(&running, "/").await;
    world.text(&other, "/").await;
    let frozen = until(|| world.engine.frozen(), |frozen| !frozen.is_empty()).await;
    assert!(frozen[0].contains("other") && frozen.len() == 1, "{frozen:?}");
    world.end().await;
}

#[tokio::test]
async fn frozen_instance_is_thawed_before_sigterm() {
    let world = World::with(SETTINGS).await;
    let (version, image) = world.function("hello", Load::CleansUp, |spec| {
        (spec.idle_timeout, spec.stop_grace) = (Some(Duration::from_millis(300)), 60 * SECOND);
    });
    world.text(&version, "/").await;
    until(|| world.engine.frozen().len(), |frozen| *frozen == 1).await;
    until(|| world.engine.used(Verb::Terminate), |signals| *signals == 1).await;
    assert_eq!(world.engine.frozen(), [""; 0]);
    image.gate.add_permits(1);
    until(|| world.engine.containers(), Vec::is_empty).await;
    world.end().await;
}

const SECOND: Duration = Duration::from_secs(1);
