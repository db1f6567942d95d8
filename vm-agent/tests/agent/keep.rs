//! Keep-alive: by the pauses between calls, with prewarms, and `isolation: call`, where no instance
//! stays.

use crate::{
    support::{World, call, code, one, until, version},
    wrapper::Load,
};
use epsilon_api::{
    body,
    function::{FunctionSpec, Isolation, Version},
    units::Bytes,
    vm::{Keep, KeepAliveSource},
};
use epsilon_vm_agent::engine::fake::FakeEngine;
use futures_util::future::join_all;
use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tempfile::TempDir;

const SECOND: Duration = Duration::from_secs(1);

/// A directory in which an earlier agent left twenty pauses of `hello` between 20 and 30 seconds:
/// instances are removed, and prewarmed after 18 s until 33 s.
fn periodic() -> TempDir {
    let text = r#"{"format":1,"functions":[{"function":"hello","bins":[[2,20.0]],"beyond":0.0}]}"#;
    with_history(text)
}

fn with_history(text: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("vm")).unwrap();
    std::fs::write(folder.path().join("vm/keep.json"), text).unwrap();
    folder
}

/// Advances time at once, for the agent only.
async fn later(by: Duration) {
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
}

fn keep(world: &World, version: &Version) -> Option<Keep> {
    let keeps = world.vm.status().keeps;
    let mine = |keep: &Keep| keep.function == version.function && keep.version == version.number;
    keeps.into_iter().find(mine)
}

#[tokio::test]
async fn periodic_function_is_removed_and_prewarmed_before_its_call() {
    let world = World::on(
        FakeEngine::new(),
        periodic(),
        "{memory: 256MiB, instance_idle: 10s, instance_idle_min: 2s}",
    )
    .await;
    let (version, image) = world.function("hello", Load::Works, |_| {});
    let first = world.text(&version, "/").await;
    later(3 * SECOND).await;
    until(|| world.engine.containers(), Vec::is_empty).await;
    later(4 * SECOND).await;
    until(|| keep(&world, &version).is_some(), |seen| *seen).await; // one sweep ran
    assert!(world.states().is_empty(), "it is not time yet");
    later(13 * SECOND).await;
    until(|| world.states(), |states| states == &["idle"]).await;
    assert_eq!(world.metric("epsilon_prewarms_total"), 1.0);
    later(3 * SECOND).await; // longer than `idle`: the prewarmed instance waits for its call
    assert_ne!(world.text(&version, "/").await, first);
    assert_eq!(image.starts.load(Ordering::SeqCst), 2, "the call used the prewarmed instance");
    assert_eq!(world.metric("epsilon_prewarms_used_total"), 1.0);
    world.end().await;
}

#[tokio::test]
async fn unused_prewarm_is_removed_and_not_repeated() {
    let world =
        World::on(FakeEngine::new(), periodic(), "{instance_idle: 10s, instance_idle_min: 2s}")
            .await;
    let (version, image) = world.function("hello", Load::Works, |_| {});
    world.text(&version, "/").await;
    later(3 * SECOND).await;
    until(|| world.engine.containers(), Vec::is_empty).await;
    later(17 * SECOND).await;
    until(|| world.states(), |states| states == &["idle"]).await;
    later(14 * SECOND).await;
    until(|| world.engine.containers(), Vec::is_empty).await;
    // The pool is removed with it: no call is expected any more.
    until(|| world.metric("epsilon_instance_starts_total"), |count| *count == 0.0).await;
    assert_eq!(image.starts.load(Ordering::SeqCst), 2);
    assert_eq!(world.metric("epsilon_prewarms_used_total"), 0.0);
    world.end().await;
}

#[tokio::test]
async fn prewarm_evicts_nothing() {
    let yaml = "{instance_idle: 10s, instance_idle_min: 2s, memory: 256MiB}";
    let world = World::on(FakeEngine::new(), periodic(), yaml).await;
    let (version, image) = world.function("hello", Load::Works, |_| {});
    let stays = |spec: &mut FunctionSpec| spec.idle_timeout = Some(600 * SECOND);
    let (other, _) = world.function("other", Load::Works, stays);
    world.text(&version, "/").await;
    world.text(&other, "/").await;
    until(|| world.engine.containers().len(), |count| *count == 1).await;
    later(20 * SECOND).await;
    later(2 * SECOND).await; // two sweeps and more
    until(|| keep(&world, &version).is_some(), |seen| *seen).await;
    assert_eq!((world.states(), image.starts.load(Ordering::SeqCst)), (vec!["idle".into()], 1));
    // A call is no prewarm.
    world.text(&version, "/").await;
    world.end().await;
}

#[tokio::test]
async fn retired_version_is_not_prewarmed() {
    let world =
        World::on(FakeEngine::new(), periodic(), "{instance_idle: 10s, instance_idle_min: 2s}")
            .await;
    let (version, image) = world.function("hello", Load::Works, |_| {});
    world.vm.ensure_ready(Arc::clone(&version)).await.unwrap();
    world.text(&version, "/").await;
    world.vm.retire(&version.id());
    until(|| world.engine.containers(), Vec::is_empty).await;
    later(20 * SECOND).await;
    later(2 * SECOND).await;
    until(|| world.metric("epsilon_instance_starts_total"), |count| *count == 0.0).await;
    assert_eq!(image.starts.load(Ordering::SeqCst), 1);
    world.end().await;
}

#[tokio::test]
async fn the_status_says_how_long_and_why() {
    let world = World::on(FakeEngine::new(), periodic(), "{}").await;
    let (hello, _) = world.function("hello", Load::Works, |_| {});
    let (new, _) = world.function("new", Load::Works, |_| {});
    let (set, _) = world.function("set", Load::Works, |spec| spec.idle_timeout = Some(90 * SECOND));
    for version in [&hello, &new, &set] {
        world.text(version, "/").await;
    }
    let hello = until(|| keep(&world, &hello), Option::is_some).await.unwrap();
    assert_eq!(
        (hello.idle, hello.ready_after, hello.by),
        (33 * SECOND, None, KeepAliveSource::Adaptive)
    );
    assert_eq!(hello.why, "99 of 100 pauses were shorter than 30s");
    let set = until(|| keep(&world, &set), Option::is_some).await.unwrap();
    assert_eq!((set.idle, set.by), (90 * SECOND, KeepAliveSource::Set));
    assert_eq!(keep(&world, &new), None, "it has no history");
    // The next version belongs to the same function.
    let next = version("hello", 2, world.function("hello", Load::Works, |_| {}).0.spec.clone());
    world.text(&next, "/").await;
    let next = until(|| keep(&world, &next), Option::is_some).await.unwrap();
    assert_eq!(next.by, KeepAliveSource::Adaptive);
    world.end().await;
}

#[tokio::test]
async fn pauses_outlive_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm/keep.json");
    let world = World::on(FakeEngine::new(), folder, "{}").await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    for _ in 0..9 {
        world.text(&version, "/").await;
        later(100 * SECOND).await;
    }
    world.agent.shutdown(5 * SECOND).await;
    assert!(read(&path).contains(r#""bins":[[10,8.0]]"#), "{}", read(&path));
    let world = World::on(FakeEngine::new(), world.folder, "{}").await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    world.text(&version, "/").await;
    let keep = until(|| keep(&world, &version), Option::is_some).await.unwrap();
    assert_eq!(keep.by, KeepAliveSource::Adaptive, "{keep:?}");
    world.end().await;
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[tokio::test]
async fn invalid_history_file_does_not_prevent_start() {
    for text in ["", "{\"format\":1,", "{\"format\":7,\"functions\":[]}"] {
        let world = World::on(FakeEngine::new(), with_history(text), "{}").await;
        let (version, _) = world.function("hello", Load::Works, |_| {});
        world.text(&version, "/").await;
        let path = world.folder.path().join("vm/keep.json");
        world.agent.shutdown(5 * SECOND).await;
        assert!(read(&path).starts_with(r#"{"format":1,"functions":[{"function":"hello""#));
    }
}

#[tokio::test]
async fn only_last_instance_stays_longer_than_default() {
    let yaml = "{instance_idle: 60s}";
    let folder = with_history(
        r#"{"format":1,"functions":[{"function":"hello","bins":[[0,20.0],[18,20.0]],"beyond":0.0}]}"#,
    );
    let world = World::on(FakeEngine::new(), folder, yaml).await;
    let (version, image) = world.function("hello", Load::Works, |_| {});
    let calls = join_all((0..3).map(|_| world.get(&version, "/gate")));
    let (answers, ()) = tokio::join!(calls, async {
        until(|| image.running.load(Ordering::SeqCst), |running| *running == 3).await;
        image.gate.add_permits(3);
    });
    drop(answers);
    until(|| world.states(), |states| states == &["idle"; 3]).await;
    later(61 * SECOND).await;
    until(|| world.states(), |states| states == &["idle"]).await;
    // The last one stays for the longest pause that was observed, nine minutes, and a tenth more.
    later(400 * SECOND).await;
    assert_eq!(world.states(), ["idle"]);
    later(200 * SECOND).await;
    until(|| world.states(), Vec::is_empty).await;
    world.end().await;
}

#[tokio::test]
async fn each_call_has_an_instance_of_its_own() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| {
        spec.isolation = Isolation::Call;
        spec.max_instances = one(2);
        spec.concurrency = one(4); // refused by the manifest; here it makes no difference
    });
    let mut seen: HashSet<String> = HashSet::new();
    for _ in 0..3 {
        seen.insert(world.text(&version, "/").await);
    }
    let calls = join_all((0..6).map(|_| world.text(&version, "/"))).await;
    seen.extend(calls);
    assert_eq!(seen.len(), 9, "{seen:?}");
    assert_eq!(image.calls.load(Ordering::SeqCst), 9);
    assert_eq!(image.most_in_one.load(Ordering::SeqCst), 1);
    until(|| world.engine.containers(), Vec::is_empty).await;
    assert_eq!(image.starts.load(Ordering::SeqCst), 9, "none was started without a request");
    world.end().await;
}

#[tokio::test]
async fn isolated_calls_have_fresh_instance_ready_by_min_instances() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| {
        spec.isolation = Isolation::Call;
        spec.min_instances = 2;
    });
    world.vm.ensure_ready(Arc::clone(&version)).await.unwrap();
    let first = world.text(&version, "/").await;
    until(|| world.states(), |states| states == &["idle"; 2]).await;
    assert_eq!(image.starts.load(Ordering::SeqCst), 3);
    assert_ne!(world.text(&version, "/").await, first);
    world.end().await;
}

#[tokio::test]
async fn abandoned_isolated_instance_serves_no_other_call() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |spec| {
        spec.isolation = Isolation::Call;
        spec.timeout = 2 * SECOND;
    });
    // Its caller disconnects, and its code ends with that.
    let left = world.vm.call(call(&version, "/while-listened-to", body::empty()));
    let left = tokio::time::timeout(Duration::from_millis(300), left).await;
    assert!(left.is_err(), "it does not answer");
    // Its code never ends.
    assert_eq!(code(&world.get(&version, "/forever").await), "FUNCTION_TIMEOUT");
    until(|| world.engine.containers(), Vec::is_empty).await;
    assert_eq!(code(&world.get(&version, "/crash").await), "FUNCTION_CRASHED");
    world.text(&version, "/").await;
    until(|| world.engine.containers(), Vec::is_empty).await;
    assert_eq!(world.vm.status().memory_used_bytes, Bytes(0));
    world.end().await;
}
