//! Starts that no call waits for, as of a deployment of many functions: they must not delay the
//! starts of calls.

use crate::{
    support::{World, code, until},
    wrapper::{Image, Load},
};
use epsilon_api::{function::Version, units::Bytes};
use epsilon_vm_agent::engine::fake::{Fault, Verb};
use futures_util::future::join_all;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::task::JoinHandle;

/// Requests an instance of each version, as a deployment does.
fn deploy(world: &World, versions: &[Arc<Version>]) -> Vec<JoinHandle<bool>> {
    let ask = |version: &Arc<Version>| {
        let vm = Arc::clone(&world.vm);
        let version = Arc::clone(version);
        tokio::spawn(async move { vm.ensure_ready(version).await.is_ok() })
    };
    versions.iter().map(ask).collect()
}

async fn until_begun(images: &[Arc<Image>], want: usize) {
    let begun = || images.iter().map(|image| image.starts.load(Ordering::SeqCst)).sum::<usize>();
    until(begun, |begun| *begun == want).await;
}

async fn all_worked(starts: Vec<JoinHandle<bool>>) -> bool {
    join_all(starts).await.into_iter().all(Result::unwrap)
}

#[tokio::test]
async fn a_first_call_goes_before_a_deployment_of_many() {
    let world = World::with("{starts_at_once: 2, cells_max: 0}").await;
    let (versions, images): (Vec<_>, Vec<_>) =
        (0..6).map(|n| world.function(&format!("many-{n}"), Load::Gated, |_| {})).unzip();
    let (other, _) = world.function("other", Load::Works, |_| {});
    let starts = deploy(&world, &versions);
    until_begun(&images, 1).await;
    assert_eq!(code(&world.get(&other, "/").await), "OK");
    until_begun(&images, 1).await;
    images.iter().for_each(|image| image.gate.add_permits(1));
    assert!(all_worked(starts).await);
    world.end().await;
}

#[tokio::test]
async fn background_start_becomes_foreground_when_a_call_waits() {
    let world = World::with("{starts_at_once: 2, cells_max: 0}").await;
    let (first, gated) = world.function("first", Load::Gated, |_| {});
    let (second, _) = world.function("second", Load::Works, |_| {});
    let mut starts = deploy(&world, &[first]);
    until_begun(&[Arc::clone(&gated)], 1).await;
    starts.extend(deploy(&world, &[Arc::clone(&second)]));
    until(|| world.states().len(), |instances| *instances == 2).await;
    assert_eq!(code(&world.get(&second, "/").await), "OK");
    gated.gate.add_permits(1);
    assert!(all_worked(starts).await);
    world.end().await;
}

/// Eight need twice the VM's memory, but one after the other only what each of them has.
#[tokio::test]
async fn a_deployment_may_be_larger_than_the_memory() {
    let world = World::with("{memory: 512MiB, queue_wait: 100ms, cells_max: 0}").await;
    let small =
        |n| world.function(&format!("many-{n}"), Load::Works, |spec| spec.memory = Bytes::mib(128));
    let versions: Vec<_> = (0..8).map(|n| small(n).0).collect();
    for _ in &versions {
        world.engine.script(Verb::Create, Fault::Slow(Duration::from_millis(150)));
    }
    assert!(all_worked(deploy(&world, &versions)).await);
    world.end().await;
}
