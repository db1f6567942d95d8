//! The engine completes a request also when the agent is shut down in that moment. Nothing of it
//! may stay.

use crate::{
    support::{World, until},
    wrapper::Load,
};
use epsilon_api::function::Network;
use epsilon_vm_agent::engine::fake::{FakeEngine, Fault, Verb};
use std::{sync::Arc, time::Duration};

/// Long enough for a shutdown in the middle.
const SLOW: Fault = Fault::Slow(Duration::from_millis(200));

/// Ends the agent while the engine is about to carry out `verb`; then nothing is there, and nothing
/// appears later.
async fn ends_in_the_middle_of(verb: Verb, world: World) {
    let engine = world.engine.clone();
    let before = engine.used(verb);
    until(|| engine.used(verb), |used| *used > before).await;
    world.agent.shutdown(Duration::ZERO).await;
    until(|| engine.is_busy(), |busy| !busy).await;
    assert_eq!((engine.containers(), engine.networks()), (vec![], vec![]), "{verb:?}");
}

#[tokio::test]
async fn network_created_during_shutdown_is_removed() {
    let world = World::with("{reconcile_every: 50ms}").await;
    world.engine.script(Verb::EnsureNetwork, SLOW);
    ends_in_the_middle_of(Verb::EnsureNetwork, world).await;
}

#[tokio::test]
async fn container_created_or_started_during_shutdown_is_removed() {
    for verb in [Verb::Create, Verb::Start] {
        let world = World::new().await;
        let (hello, _) = world.function("hello", Load::Works, |spec| {
            spec.network = Network::Egress;
        });
        world.engine.script(verb, SLOW);
        let vm = Arc::clone(&world.vm);
        tokio::spawn(async move { vm.ensure_ready(hello).await });
        ends_in_the_middle_of(verb, world).await;
    }
}

/// Docker 20.10 forgets to disconnect a container from its network when it is removed while it
/// starts.
#[tokio::test]
async fn a_container_is_not_removed_while_it_starts() {
    let world = World::new().await;
    let (hello, _) = world.function("hello", Load::Works, |_| {});
    world.engine.script(Verb::Start, SLOW);
    let vm = Arc::clone(&world.vm);
    let wanted = Arc::clone(&hello);
    let asker = tokio::spawn(async move { vm.ensure_ready(wanted).await });
    until(|| world.engine.used(Verb::Start), |used| *used == 1).await;
    world.vm.retire(&hello.id());
    asker.await.unwrap().unwrap_err();
    let removed_and_started =
        |engine: &FakeEngine| (engine.used(Verb::Remove), engine.most_running());
    until(
        || removed_and_started(&world.engine),
        |(removed, started)| {
            assert!(*removed == 0 || *started == 1, "it was removed before it ran");
            *removed > 0
        },
    )
    .await;
    until(|| world.engine.containers(), Vec::is_empty).await;
    world.end().await;
}
