//! Starts and stops through cells, one after the other: nothing grows. Alone in its process,
//! because it counts the process's open files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![allow(dead_code, reason = "the support of the tests in `cells.rs`")]

#[path = "cells/support.rs"]
mod support;

use support::{Base, World, function, text, until};

const CODE: &str = "exports.hello = (req, res) => res.send('hello')";
const ROUNDS: usize = 24;

/// Open files, mounts, containers, directories; once everything that was started is gone.
async fn counts(world: &World) -> [usize; 4] {
    let quiet = || {
        let cells = world.status().cells;
        let count = [world.mounts().len(), world.containers().len(), world.cells().len()];
        (count, cells.ready as usize, cells.booting)
    };
    let (rest, ..) = until(quiet, |(count, ready, booting)| {
        *count == [0, *ready, *ready] && *booting == 0 && *ready == 1
    })
    .await;
    let files = std::fs::read_dir("/proc/self/fd").unwrap().count();
    [files, rest[0], rest[1], rest[2]]
}

#[tokio::test]
async fn nothing_grows() {
    // As in the service's unit: what a cell's user has to read is readable all the same.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let base = Base::new();
    let world = World::new("{cells_min: 1, cells_max: 1}").await;
    let mut before = None;
    let mut phases = Vec::new();
    for round in 0..ROUNDS {
        let version = function(&world, &base, CODE, |_| {});
        world.until_ready(&version, 1).await;
        let answer = world.get(&version, "/").await.unwrap();
        phases.push(answer.spent.start.unwrap());
        assert_eq!(text(answer).await, "hello");
        world.retire(&version).await;
        // The first rounds open what stays open: connections to the engine, log files.
        if round == 3 {
            before = Some(counts(&world).await);
        }
    }
    phases.sort_by_key(|phases| phases.total());
    println!("median: {:?}, slowest: {:?}", phases[ROUNDS / 2], phases[ROUNDS - 1]);
    let (before, after) = (before.unwrap(), counts(&world).await);
    assert_eq!(after[1..], before[1..]);
    // One connection to the engine more or less is not a leak of each round.
    assert!(after[0] < before[0] + ROUNDS / 2, "open files: {before:?}, then {after:?}");
    assert_eq!(world.assigned("ready"), ROUNDS as u64);
    world.end().await;
}
