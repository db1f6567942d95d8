//! Removal of images: unneeded ones, and those that do not fit on the disk.

use crate::{
    support::{World, until, version},
    wrapper::{Image, Load},
};
use epsilon_api::{
    function::{FunctionSpec, Runtime, Version},
    units::Bytes,
    vm::ImageRemoval,
};
use epsilon_vm_agent::engine::{
    Disk,
    fake::{FakeEngine, Fault, Verb},
};
use std::{sync::Arc, time::Duration};

#[tokio::test]
async fn unneeded_image_is_removed_and_can_return() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |_| {});
    world.vm.fetch(Arc::clone(&version)).await.unwrap();
    assert_eq!(world.vm.status().images.len(), 1);
    for _ in 0..2 {
        let removal = world.vm.remove_image(version.image.clone()).await.unwrap();
        assert_eq!(removal, ImageRemoval::Gone, "a repeated request changes nothing");
    }
    assert_eq!((world.engine.images(), world.vm.status().images), (vec![], vec![]));
    world.engine.add_image("hello", image.program());
    world.vm.ensure_ready(version).await.unwrap();
}

#[tokio::test]
async fn an_image_in_use_stays() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    world.vm.ensure_ready(Arc::clone(&version)).await.unwrap();
    let removed = async || world.vm.remove_image(version.image.clone()).await.unwrap();
    assert_eq!(removed().await, ImageRemoval::InUse);
    world.vm.retire(&version.id());
    until(|| world.engine.containers().len(), |count| *count == 0).await;
    until(|| world.states().len(), |count| *count == 0).await;
    assert_eq!(removed().await, ImageRemoval::Gone);
}

/// A start that just found the image, and one that is about to look.
#[tokio::test]
async fn a_start_and_a_removal_at_once_end_well() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    world.engine.script(Verb::EnsureImage, Fault::Slow(Duration::from_millis(50)));
    let start = world.vm.ensure_ready(Arc::clone(&version));
    let removal = async {
        until(|| world.engine.used(Verb::EnsureImage), |used| *used > 0).await;
        world.vm.remove_image(version.image.clone()).await.unwrap()
    };
    let (started, removal) = tokio::join!(start, removal);
    started.unwrap();
    assert_eq!(removal, ImageRemoval::InUse, "the start came first");
}

fn pulled(engine: &FakeEngine, name: &str) -> Arc<Version> {
    let mut version =
        Version::clone(&version(name, 1, FunctionSpec::new(Runtime::Node, "index.js", name)));
    version.image.reference = format!("registry.example/{name}@sha256:00");
    engine.add_image(&version.image.reference, Image::new(Load::Works).program());
    Arc::new(version)
}

#[tokio::test]
async fn full_disk_loses_images_that_can_be_pulled() {
    let engine = FakeEngine::new();
    let folder = tempfile::tempdir().unwrap();
    let percent = |used: u64| Disk { size: Bytes(100), free: Bytes(100 - used) };
    engine.set_disk(percent(50));
    let world = World::on(engine.clone(), folder, "{disk_limit: 80, disk_look: 20ms}").await;
    let [used, idle, never] = ["used", "idle", "never"].map(|name| pulled(&engine, name));
    let (built_here, _) = world.function("built-here", Load::Works, |_| {});
    world.vm.fetch(Arc::clone(&idle)).await.unwrap();
    world.vm.fetch(built_here).await.unwrap();
    world.vm.ensure_ready(Arc::clone(&used)).await.unwrap();
    let removals = engine.used(Verb::RemoveImage);
    assert_eq!(removals, 0, "the disk is not full");
    until(|| world.metric("epsilon_disk_free_bytes"), |free| *free == 50.0).await;
    assert_eq!(world.metric("epsilon_disk_size_bytes"), 100.0);
    engine.set_disk(percent(81));
    let wanted = |left: &Vec<String>| !left.contains(&idle.image.reference);
    let left = until(|| engine.images(), wanted).await;
    assert!(!left.contains(&never.image.reference), "{left:?}");
    assert!(left.contains(&used.image.reference), "an instance uses it: {left:?}");
    assert!(left.contains(&"built-here".to_owned()), "no registry has it: {left:?}");
}
