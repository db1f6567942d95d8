//! An engine that is down, and bugs of our own: neither may leave containers or files, or end the
//! agent.

use crate::{
    support::{self, World, call, code, one, until},
    wrapper::Load,
};
use epsilon_api::{body, chain::Chain};
use epsilon_vm_agent::engine::{
    Exit,
    fake::{Fault, Verb},
};
use futures_util::future::join_all;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

#[tokio::test]
async fn calls_during_engine_outage_leave_nothing_waiting() {
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
async fn engine_stop_during_load_is_not_blamed_on_code() {
    let world = World::new().await;
    let (version, image) = world.function("loading", Load::Hangs, |_| {});
    let stops = async {
        until(|| image.starts.load(Ordering::SeqCst), |starts| *starts == 1).await;
        world.engine.set_down(true);
        world.engine.crash(&world.engine.containers()[0]);
    };
    let (answer, ()) = tokio::join!(world.get(&version, "/"), stops);
    assert_eq!(code(&answer), "NO_CAPACITY");
    world.engine.set_down(false);
    until(|| world.engine.containers(), Vec::is_empty).await;
    world.end().await;
}

/// An engine that shuts down sends SIGTERM to its containers first, and still answers then.
#[tokio::test]
async fn sigterm_during_load_is_not_blamed_on_code() {
    let world = World::new().await;
    let (version, image) = world.function("loading", Load::Hangs, |_| {});
    let crash = async {
        until(|| image.starts.load(Ordering::SeqCst), |starts| *starts == 1).await;
        world.engine.crash_all(Exit { code: 143, out_of_memory: false });
    };
    let (answer, ()) = tokio::join!(world.get(&version, "/"), crash);
    assert_eq!(code(&answer), "NO_CAPACITY");
    world.end().await;
}

#[tokio::test]
async fn container_of_unanswered_creation_is_removed_later() {
    let world = World::with("{reconcile_every: 50ms}").await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    world.engine.script(Verb::Attach, Fault::Hang);
    world.engine.script(Verb::Remove, Fault::Hang);
    assert_eq!(code(&world.get(&version, "/").await), "NO_CAPACITY");
    until(|| world.engine.containers(), Vec::is_empty).await;
    world.end().await;
}

#[tokio::test]
async fn panicking_start_fails_its_calls_and_is_removed() {
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
async fn failed_pull_fails_its_waiters_later_calls_retry() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    for _ in 0..5 {
        world.engine.script(Verb::EnsureImage, Fault::Hang); // a registry that does not answer
    }
    let seen = world.engine.used(Verb::EnsureImage);
    let all = join_all((0..5).map(|_| world.vm.fetch(Arc::clone(&version)))).await;
    let texts: Vec<_> =
        all.iter().map(|one| Chain(one.as_ref().unwrap_err()).to_string()).collect();
    assert!(texts.iter().all(|text| text.contains("engine does not answer")), "{texts:?}");
    assert_eq!(world.engine.used(Verb::EnsureImage) - seen, 1, "one pull for all of them");
    assert!(world.vm.fetch(Arc::clone(&version)).await.is_err(), "the second one that hangs");
    assert_eq!(world.engine.used(Verb::EnsureImage) - seen, 2);
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
    assert_eq!(world.engine.containers().len(), 1, "its memory was freed first");
    until(|| world.engine.containers(), Vec::is_empty).await;
}

#[tokio::test]
async fn refused_wait_is_not_taken_for_an_exit() {
    let world = World::with("{reconcile_every: 50ms}").await;
    let (version, image) = world.function("hello", Load::Works, |_| {});
    world.engine.script(Verb::Wait, Fault::Refuse);
    let first = world.text(&version, "/").await;
    until(|| world.engine.used(Verb::Wait), |used| *used >= 2).await;
    assert_eq!(world.text(&version, "/").await, first);
    assert_eq!(image.starts.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn removed_network_is_created_again() {
    let world = World::new().await;
    let (version, _) = world.function("hello", Load::Works, |_| {});
    let network = world.engine.networks().remove(0);
    epsilon_vm_agent::engine::Engine::remove_network(&world.engine, &network).await.unwrap();
    world.text(&version, "/").await;
    world.end().await;
}

#[tokio::test]
async fn removed_image_is_looked_up_again() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Works, |spec| {
        spec.idle_timeout = Some(Duration::from_millis(20));
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
async fn waiting_calls_get_an_error_at_shutdown() {
    let world = World::new().await;
    let (version, image) = world.function("hello", Load::Gated, |_| {});
    let vm = Arc::clone(&world.vm);
    let call = call(&version, "/", body::empty());
    let waiting = tokio::spawn(async move { vm.call(call).await });
    until(|| image.starts.load(Ordering::SeqCst), |starts| *starts == 1).await;
    world.agent.shutdown(Duration::from_millis(50)).await;
    let answer = tokio::time::timeout(Duration::from_secs(2), waiting).await;
    assert_eq!(code(&answer.expect("an immediate answer").unwrap()), "NO_CAPACITY");
}

/// Callers disconnect at any moment, the engine fails at any verb, instances die: at the end every
/// slot, every byte of memory and every container is accounted for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_balances_after_random_faults() {
    let world =
        World::with("{memory: 1GiB, reconcile_every: 50ms, queue_wait: 200ms, start_timeout: 1s}")
            .await;
    let functions: Vec<_> = ["a", "b", "c", "d"]
        .into_iter()
        .map(|name| {
            world.function(name, Load::Works, |spec| {
                spec.timeout = Duration::from_millis(150);
                spec.concurrency = one(if name < "c" { 1 } else { 4 });
                spec.max_instances = one(3);
                spec.min_instances = u32::from(name == "a");
            })
        })
        .collect();
    let verbs = [Verb::Create, Verb::Attach, Verb::Start, Verb::Wait, Verb::Remove, Verb::List];
    let paths = ["/", "/", "/", "/while-listened-to", "/forever", "/crash", "/hang-up", "/stream"];
    let mut dice = Dice(7);
    let mut callers = tokio::task::JoinSet::new();
    let ends = tokio::time::Instant::now() + Duration::from_secs(2);
    while tokio::time::Instant::now() < ends {
        let (version, image) = &functions[dice.roll(functions.len())];
        image.gate.add_permits(1);
        let call = call(version, paths[dice.roll(paths.len())], body::empty());
        let limit = Duration::from_micros(dice.roll(60_000) as u64);
        let vm = Arc::clone(&world.vm);
        callers.spawn(async move {
            let work = async { drop(vm.call(call).await.map(support::text)) };
            drop(tokio::time::timeout(limit, work).await);
        });
        match dice.roll(40) {
            0..4 => {
                let fault = [
                    Fault::Refuse,
                    Fault::Slow(Duration::from_millis(20)),
                    Fault::Hang,
                    Fault::Panic,
                ][dice.roll(4)];
                let verb = verbs[dice.roll(verbs.len())];
                world.engine.script(verb, fault);
            }
            4 => {
                let containers = world.engine.containers();
                if !containers.is_empty() {
                    world.engine.crash(&containers[dice.roll(containers.len())]);
                }
            }
            5 => world.vm.retire(&version.id()),
            6 => {
                let vm = Arc::clone(&world.vm);
                let version = Arc::clone(version);
                callers.spawn(async move {
                    drop(tokio::time::timeout(limit, vm.ensure_ready(version)).await);
                });
            }
            7 => {
                world.vm.drain(true);
                tokio::task::yield_now().await;
                world.vm.drain(false);
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    while callers.join_next().await.is_some() {}
    for (version, _) in &functions {
        world.vm.retire(&version.id());
    }
    let left = || {
        let status = world.vm.status();
        (
            status.calls_active,
            status.calls_waiting,
            status.memory_used_bytes.get(),
            status.instances,
        )
    };
    until(left, |(active, waiting, memory, instances)| {
        (*active, *waiting, *memory) == (0, 0, 0) && instances.is_empty()
    })
    .await;
    until(|| world.engine.containers(), Vec::is_empty).await;
    world.engine.forget_script(); // the shutdown is this test's own task
    world.end().await;
}

/// Random numbers that are the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}
