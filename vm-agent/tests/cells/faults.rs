//! Faults of cells: nothing is left of them, and the answer is the same as without cells.

use crate::support::{Base, World, code, docker, function, image_of, until};
use epsilon_api::{error::VmError, function::Version};
use futures_util::future::join_all;
use std::{process::Command, sync::Arc};

const CODE: &str = "exports.hello = (req, res) => res.send('hello')";
/// Loading never ends.
const HANGS: &str = "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)";

/// Only the ready cells are left.
async fn only_waiting_cells_are_left(world: &World) {
    until(
        || {
            (
                world.mounts().len(),
                world.containers().len(),
                world.cells().len(),
                world.status().cells,
            )
        },
        |(mounts, containers, folders, cells)| {
            let waiting = cells.ready as usize;
            cells.booting == 0 && *mounts == 0 && *containers == waiting && *folders == waiting
        },
    )
    .await;
}

#[tokio::test]
async fn load_failure_is_reported_and_removes_its_cell() {
    let base = Base::new();
    let world = World::new("{}").await;
    for (source, expected) in [
        ("throw new Error('bad luck')", "bad luck"),
        ("exports.other = () => {}", "hello"),
        ("process.exit(4)", "the process ended while loading: exit status 4"),
        ("console.error('last words'); process.exit(4)", "last words"),
        ("syntax error here", "SyntaxError"),
    ] {
        let version = function(&world, &base, source, |_| {});
        world.until_ready(&version, 1).await;
        match world.get(&version, "/").await {
            Err(VmError::InitFailed { detail, .. }) => {
                assert!(detail.contains(expected), "{source}: {detail}");
            }
            other => panic!("{source}: {other:?}"),
        }
        world.retire(&version).await;
    }
    assert_eq!(world.assigned("init_failed"), 5);
    only_waiting_cells_are_left(&world).await;
    world.end().await;
}

#[tokio::test]
async fn cell_killed_while_loading_counts_as_crash() {
    let base = Base::new();
    let world = World::new("{cells_min: 1, cells_max: 1}").await;
    let hangs = function(&world, &base, HANGS, |_| {});
    world.until_ready(&hangs, 1).await;
    let waiting = world.containers();
    let kill = async {
        until(|| world.mounts(), |mounts| mounts.len() == 1).await;
        // Only the loading cell, not the next one that boots.
        docker(&["kill", &waiting[0]]);
    };
    let (answer, ()) = tokio::join!(world.get(&hangs, "/"), kill);
    match answer {
        Err(VmError::InitFailed { detail, .. }) => {
            assert!(
                detail.contains("the process ended while loading: exit status 137"),
                "{detail}"
            );
        }
        other => panic!("{other:?}"),
    }
    world.retire(&hangs).await;
    only_waiting_cells_are_left(&world).await;
    world.end().await;
}

#[tokio::test]
async fn cancelled_start_removes_its_cell() {
    let base = Base::new();
    let world = World::new("{cells_min: 1, cells_max: 1}").await;
    let hangs = function(&world, &base, HANGS, |_| {});
    world.until_ready(&hangs, 1).await;
    let leave = async { drop(until(|| world.mounts(), |mounts| mounts.len() == 1).await) };
    tokio::select! {
        answer = world.get(&hangs, "/") => panic!("{answer:?}"),
        () = leave => {}
    }
    world.retire(&hangs).await;
    only_waiting_cells_are_left(&world).await;
    world.end().await;
}

#[tokio::test]
async fn ready_cell_that_dies_is_replaced() {
    let base = Base::new();
    let world = World::new("{cells_min: 1, cells_max: 1}").await;
    let hello = function(&world, &base, CODE, |_| {});
    world.until_ready(&hello, 1).await;
    let first = world.containers();
    docker(&["kill", &first[0]]);
    until(|| world.containers(), |now| now.len() == 1 && *now != first).await;
    world.until_ready(&hello, 1).await;
    assert_eq!(world.text(&hello, "/").await, "hello");
    assert_eq!(world.assigned("ready"), 1);
    world.end().await;
}

/// A cell that the engine has not reported dead is recognised all the same.
#[tokio::test]
async fn cells_that_just_died_fail_no_call() {
    let base = Base::new();
    let world = World::new("{cells_min: 2, cells_max: 2}").await;
    let hello = function(&world, &base, CODE, |_| {});
    world.until_ready(&hello, 2).await;
    let pid = |name: &String| docker(&["inspect", "-f", "{{.State.Pid}}", name]).trim().to_owned();
    let pids: Vec<String> = world.containers().iter().map(pid).collect();
    assert!(Command::new("kill").arg("-9").args(&pids).status().unwrap().success());
    let alive = || pids.iter().filter(|pid| is_alive(pid)).count();
    while alive() > 0 {
        std::thread::yield_now(); // not `await`: the agent must not get the event
    }
    assert_eq!(world.text(&hello, "/").await, "hello");
    world.end().await;
}

/// A zombie has closed all that it had.
fn is_alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// The same layer twice, over itself: the kernel refuses that.
fn unmountable(world: &World, base: &Base, image: &Version) -> Arc<Version> {
    let with_layers = function(world, base, CODE, |_| {});
    let mut version = image.clone();
    let mut parts = with_layers.parts.clone().unwrap();
    parts.layers.push(parts.layers[0].clone());
    version.parts = Some(parts);
    Arc::new(version)
}

#[tokio::test]
async fn failed_mount_fails_no_call() {
    let base = Base::new();
    let world = World::new("{}").await;
    let (_image, version) = image_of(&base, CODE);
    let version = unmountable(&world, &base, &version);
    world.until_ready(&version, 1).await;
    assert_eq!(world.text(&version, "/").await, "hello");
    assert_eq!((world.assigned("ready"), world.assigned("image")), (0, 1));
    // The layers are only this version's.
    let other = function(&world, &base, CODE, |_| {});
    world.until_ready(&other, 1).await;
    assert_eq!(world.text(&other, "/").await, "hello");
    assert_eq!(world.assigned("ready"), 1);
    world.end().await;
}

#[tokio::test]
async fn engine_that_does_not_see_mounts_starts_from_images() {
    let base = Base::new();
    let world = World::new("{}").await;
    let (_image, version) = image_of(&base, CODE);
    world.until_ready(&version, 2).await;
    // From here on mounts do not reach the containers, as if the engine were on another machine.
    let folder = world.cells_folder();
    assert!(Command::new("mount").arg("--make-private").arg(folder).status().unwrap().success());
    assert_eq!(world.text(&version, "/").await, "hello");
    assert_eq!((world.assigned("ready"), world.assigned("image")), (0, 1));
    // Cells are off: ready ones are removed, and none follows.
    until(|| (world.status().cells.ready, world.containers().len()), |seen| *seen == (0, 1)).await;
    let (_image, other) = image_of(&base, CODE);
    assert_eq!(world.text(&other, "/").await, "hello");
    assert_eq!(world.assigned("image"), 1, "there is no second attempt");
    assert_eq!(code(&world.get(&other, "/").await), "OK");
    world.end().await;
}

#[tokio::test]
async fn deployment_leaves_last_ready_cell_to_a_call() {
    let base = Base::new();
    let world = World::new("{cells_min: 2, cells_max: 2}").await;
    let many: Vec<_> = (0..4).map(|_| function(&world, &base, CODE, |_| {})).collect();
    let other = function(&world, &base, CODE, |_| {});
    world.until_ready(&other, 2).await;
    let ready = world.assigned("ready");
    let vm = world.vm();
    let mut deployment =
        Box::pin(join_all(many.iter().map(|new| vm.ensure_ready(Arc::clone(new)))));
    let called = async {
        // One of them has taken the cell that it may take, and others boot their own.
        until(|| world.assigned("ready"), |now| *now > ready).await;
        world.text(&other, "/").await
    };
    let text = tokio::select! {
        text = called => text,
        ended = &mut deployment => panic!("the deployment was over before the call: {ended:?}"),
    };
    assert_eq!(text, "hello");
    assert_eq!(world.assigned("ready"), ready + 2);
    assert!(deployment.await.iter().all(Result::is_ok));
    world.end().await;
}

#[tokio::test]
async fn crash_loop_boots_own_cells_and_leaves_ready_ones() {
    let base = Base::new();
    let world = World::new("{cells_min: 2, cells_max: 2}").await;
    let crashes = function(&world, &base, "exports.hello = () => process.exit(3)", |_| {});
    let calm = function(&world, &base, CODE, |_| {});
    world.until_ready(&crashes, 2).await;
    for _ in 0..3 {
        world.get(&crashes, "/").await.unwrap_err();
    }
    // From now on it crashes all the time, and cells are ready for others all the same.
    let vm = world.vm();
    let looping = tokio::spawn(async move {
        for _ in 0..12 {
            let request = http::Request::builder().uri("/").header("host", "test");
            let request = request.body(epsilon_api::body::empty()).unwrap();
            let request_id = epsilon_api::ids::RequestId::random();
            let version = Arc::clone(&crashes);
            let call = epsilon_api::vm::Call {
                version,
                request_id,
                may_wait: true,
                request,
                upload: None,
                interim: None,
            };
            vm.call(call).await.unwrap_err();
        }
    });
    until(|| world.status().cells.ready, |ready| *ready == 2).await;
    let ready = world.assigned("ready");
    world.text(&calm, "/").await;
    assert_eq!(world.assigned("ready"), ready + 1);
    assert!(!looping.is_finished(), "it looped all the time");
    looping.await.unwrap();
    assert!(world.assigned("booted") >= 10, "{}", world.assigned("booted"));
    world.end().await;
}
