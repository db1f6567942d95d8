//! An agent that is killed at any step of an assignment, and the next one on the same directory.

use crate::support::{Base, World, docker, function, run_and_kill, until};
use epsilon_api::function::Version;
use std::{
    path::Path,
    process::Command,
    sync::{Arc, OnceLock},
};

const COUNTS: &str = "let calls = 0; exports.hello = (req, res) => res.send(String(++calls))";
const HANGS: &str = "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)";
/// The next agent boots no cells, so that what exists is what was left.
const NEXT: &str = "{cells_min: 0}";

fn nothing_is_left(world: &World) {
    assert_eq!((world.containers(), world.mounts(), world.cells()), Default::default());
}

#[tokio::test]
async fn killed_while_a_cell_boots() {
    let base = Base::new();
    let folder = run_and_kill(tempfile::tempdir().unwrap(), "{}", async move |world| {
        let hello = function(world, &base, COUNTS, |_| {});
        world.vm().fetch(hello).await.unwrap();
        until(|| world.containers().len(), |count| *count > 0).await;
    });
    let world = World::on(folder, NEXT).await;
    // What the engine was requested before may appear a moment later; then the timer finds it.
    until(|| (world.containers(), world.cells()), |seen| *seen == Default::default()).await;
    world.end().await;
}

#[tokio::test]
async fn killed_while_cells_wait() {
    let base = Base::new();
    let folder = run_and_kill(tempfile::tempdir().unwrap(), "{}", async move |world| {
        let hello = function(world, &base, COUNTS, |_| {});
        world.until_ready(&hello, 2).await;
    });
    let world = World::on(folder, NEXT).await;
    nothing_is_left(&world);
    world.end().await;
}

#[tokio::test]
async fn killed_between_mount_and_record() {
    let base = Base::new();
    let folder = run_and_kill(tempfile::tempdir().unwrap(), "{}", async move |world| {
        let hello = function(world, &base, COUNTS, |_| {});
        world.until_ready(&hello, 1).await;
        let app = world.cells()[0].join("app");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "ro,nosuid,nodev", "epsilon"])
            .arg(&app)
            .status();
        assert!(mounted.unwrap().success());
        assert_eq!(world.mounts().len(), 1);
    });
    let world = World::on(folder, NEXT).await;
    nothing_is_left(&world);
    world.end().await;
}

fn record(cell: &Path, version: &Version) {
    std::fs::write(cell.join("version.json"), serde_json::to_vec(version).unwrap()).unwrap();
}

#[tokio::test]
async fn record_without_mount_or_loaded_code_is_ignored() {
    let base = Base::new();
    let folder = run_and_kill(tempfile::tempdir().unwrap(), "{}", async move |world| {
        let hello = function(world, &base, COUNTS, |_| {});
        world.until_ready(&hello, 2).await;
        let cells = world.cells();
        record(&cells[0], &hello);
        // Torn while it was written.
        std::fs::write(cells[1].join("version.json"), "{").unwrap();
    });
    let world = World::on(folder, NEXT).await;
    nothing_is_left(&world);
    world.end().await;
}

#[tokio::test]
async fn killed_while_code_loads() {
    let base = Base::new();
    let folder = run_and_kill(tempfile::tempdir().unwrap(), "{}", async move |world| {
        let hangs = function(world, &base, HANGS, |_| {});
        world.until_ready(&hangs, 1).await;
        let loads = async {
            let is_recorded = |cell: &std::path::PathBuf| cell.join("version.json").exists();
            until(|| world.cells().iter().any(is_recorded), |seen| *seen).await;
        };
        tokio::select! {
            answer = world.get(&hangs, "/") => panic!("{answer:?}"),
            () = loads => {}
        }
        assert_eq!(world.mounts().len(), 1);
    });
    let world = World::on(folder, NEXT).await;
    nothing_is_left(&world);
    world.end().await;
}

#[tokio::test]
async fn adopted_cells_serve_on_and_dead_are_removed() {
    let base = Base::new();
    let versions: Arc<OnceLock<[Arc<Version>; 2]>> = Arc::default();
    let to = Arc::clone(&versions);
    let folder = run_and_kill(tempfile::tempdir().unwrap(), "{}", async move |world| {
        let one = function(world, &base, COUNTS, |_| {});
        let two = function(world, &base, COUNTS, |_| {});
        world.until_ready(&one, 2).await;
        assert_eq!(world.text(&one, "/").await, "1");
        let living = world.container();
        assert_eq!(world.text(&two, "/").await, "1");
        // One of the two dies while no agent runs.
        let instances = world.status().instances;
        let dead = instances.iter().map(|i| format!("epsilon-cell-{}", i.id));
        let dead = dead.into_iter().find(|name| *name != living).unwrap();
        docker(&["kill", &dead]);
        to.set([one, two]).unwrap();
    });
    let [one, two] = versions.get().unwrap();
    let world = World::on(folder, NEXT).await;
    assert_eq!((world.containers().len(), world.mounts().len(), world.cells().len()), (1, 1, 1));
    assert_eq!(world.text(one, "/").await, "2", "the same instance");
    assert_eq!(world.text(two, "/").await, "1", "a new one");
    // An adopted instance ends like any other.
    world.retire(one).await;
    until(|| world.mounts().len(), |count| *count == 1).await;
    world.end().await;
}
