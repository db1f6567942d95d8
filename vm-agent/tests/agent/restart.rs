//! An agent that is killed, and the next one on the same directory.

use crate::{
    support::{World, config, until},
    wrapper::Load,
};
use epsilon_api::vm::VmState;
use epsilon_vm_agent::{app::Agent, engine::fake::FakeEngine, error::StartError};
use prometheus::Registry;
use std::sync::{Arc, atomic::Ordering};

/// Runs an agent in a runtime of its own and drops that: no destructor of the agent runs.
fn run_and_kill(
    engine: &FakeEngine,
    folder: tempfile::TempDir,
    act: impl AsyncFnOnce(&World) + Send,
) -> tempfile::TempDir {
    run_and_kill_with("{}", engine, folder, act)
}

fn run_and_kill_with(
    settings: &str,
    engine: &FakeEngine,
    folder: tempfile::TempDir,
    act: impl AsyncFnOnce(&World) + Send,
) -> tempfile::TempDir {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = runtime.block_on(async {
        let world = World::on(engine.clone(), folder, settings).await;
        act(&world).await;
        world
    });
    let World { agent, folder, vm, .. } = world;
    runtime.shutdown_background();
    drop((agent, vm));
    folder
}

#[test]
fn healthy_instances_are_adopted_and_the_rest_is_removed() {
    // The engine and its containers outlive the first agent's runtime.
    let machine = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let engine = machine.block_on(async { FakeEngine::on_this_runtime() });
    let mut functions = Vec::new();
    let folder = run_and_kill(&engine, tempfile::tempdir().unwrap(), async |world| {
        let (healthy, image) = world.function("healthy", Load::Works, |_| {});
        let (busy, _) = world.function("busy", Load::Works, |_| {});
        let (dead, _) = world.function("dead", Load::Works, |_| {});
        let first = world.text(&healthy, "/").await;
        drop(
            tokio::time::timeout(
                std::time::Duration::from_millis(50),
                world.get(&busy, "/forever"),
            )
            .await,
        );
        world.text(&dead, "/").await;
        functions.push((healthy, image, first));
    });
    let dead = engine.containers().into_iter().find(|name| name.contains("-dead-")).unwrap();
    engine.crash(&dead);
    std::fs::create_dir(folder.path().join("vm/sockets/00000000dead")).unwrap();
    assert_eq!(engine.containers().len(), 3);

    machine.block_on(async {
        let world = World::on(engine.clone(), folder, "{}").await;
        assert_eq!(engine.containers().len(), 1);
        assert_eq!(world.states(), ["idle"]);
        let (healthy, image, first) = functions.remove(0);
        assert_eq!(world.text(&healthy, "/").await, first, "the same instance");
        assert_eq!(image.starts.load(Ordering::SeqCst), 1);
        world.text(&healthy, "/log").await;
        // Directories of no instance are removed in the background.
        let sockets = || std::fs::read_dir(world.folder.path().join("vm/sockets")).unwrap().count();
        until(sockets, |count| *count == 1).await;
        world.end().await;
    });
}

#[tokio::test]
async fn data_directory_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new().await;
    let found = std::fs::metadata(world.folder.path().join("vm")).unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o700);
    world.end().await;
}

#[tokio::test]
async fn two_agents_cannot_share_a_folder() {
    let world = World::new().await;
    let config = config(world.folder.path(), "{}");
    let second = Agent::with_engine(config, Arc::new(FakeEngine::new()), &Registry::new()).await;
    assert!(matches!(second, Err(StartError::InUse { .. })), "{second:?}");
}

#[tokio::test]
async fn without_an_engine_there_is_no_agent() {
    let engine = FakeEngine::new();
    engine.set_down(true);
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "{}");
    let agent = Agent::with_engine(config, Arc::new(engine), &Registry::new()).await;
    assert!(matches!(agent, Err(StartError::Engine { .. })), "{agent:?}");
}

#[tokio::test]
async fn engine_outage_and_recovery_are_reported() {
    let world = World::with("{reconcile_every: 50ms}").await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    world.text(&version, "/").await;
    world.engine.set_down(true);
    until(|| world.vm.status().state, |state| *state == VmState::EngineDown).await;
    world.text(&version, "/").await; // warm calls still work
    world.engine.set_down(false);
    until(|| world.vm.status().state, |state| *state == VmState::Ready).await;
    world.end().await;
}

#[test]
fn a_frozen_instance_is_taken_over_too() {
    let machine = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let engine = machine.block_on(async { FakeEngine::on_this_runtime() });
    let mut functions = Vec::new();
    let folder = tempfile::tempdir().unwrap();
    let folder = run_and_kill_with("{freeze_after: 50ms}", &engine, folder, async |world| {
        let (version, image) = world.function("hello", Load::Works, |_| {});
        world.text(&version, "/").await;
        until(|| engine.frozen().len(), |frozen| *frozen == 1).await;
        functions.push((version, image));
    });
    machine.block_on(async {
        let world = World::on(engine.clone(), folder, "{}").await;
        assert_eq!(engine.frozen(), [""; 0]);
        let (version, image) = functions.remove(0);
        world.text(&version, "/").await;
        assert_eq!(image.starts.load(Ordering::SeqCst), 1);
        world.end().await;
    });
}
