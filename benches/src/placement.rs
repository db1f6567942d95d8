//! `make bench ARGS=placement`: minutes of calls over 8, 32 and 200 VMs, through the gateway's own
//! ring, bound and choice, and through plain hashing, random and least-loaded placement. Shows
//! calls that find a warm instance, how evenly VMs are loaded, functions that move when VMs join
//! and leave. Then how long one placement takes, measured.
//!
//! The simulation is deterministic: the same numbers on every machine. Not modelled: pulls, and
//! other gateways.
//!
//! | module | what it is |
//! |---|---|
//! | [`traffic`] | calls of functions, Zipf, with a surge |
//! | [`world`] | VMs, instances, idle timeouts, evictions |
//! | [`policies`] | which VM gets a call |
//! | [`speed`] | the real placement over 200 VMs and 10,000 functions, timed |

mod policies;
mod speed;
mod traffic;
mod world;

use policies::{Placed, Policy};
use std::fmt::Write;
use traffic::Traffic;
use world::World;

/// Seconds before the first figure counts: instances have to exist first.
const WARM_UP: f64 = 60.0;
/// A function far down the list gets many calls from here to there.
const SURGE: std::ops::Range<f64> = 90.0..120.0;
/// One VM joins here …
const JOIN: f64 = 150.0;
/// … and one of the first ones leaves here.
const LEAVE: f64 = 180.0;
const END: f64 = 210.0;
/// Functions for each VM.
const FUNCTIONS: usize = 50;

/// Result of one run.
#[derive(Debug, Default)]
struct Outcome {
    calls: u64,
    warm: u64,
    /// Waited for a start though home had a free instance.
    needless: u64,
    refused: u64,
    /// max/mean of the VMs' loads, each second.
    balance: Vec<f64>,
    /// The same while a function surges.
    surge: Vec<f64>,
    /// VMs on which each function has instances, at the moment before the VM joins.
    spread: f64,
    /// Share of the calls in the ten seconds after a VM joined or left.
    after_change: (u64, u64),
    moved_by_join: f64,
    moved_by_leave: f64,
}

/// Runs all of it; returns the tables as markdown.
pub(crate) fn table() -> String {
    // First: its figure of memory wants a process that has held nothing yet.
    let speed = speed::table();
    let mut out = String::from(
        "| VMs | placement | warm | cold beside a warm home | warm after a change | max ÷ mean load | … in a surge | VMs per function | no room | moved by a join | by a leave |\n\
         |---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for vms in [8, 32, 200] {
        for policy in Policy::ALL {
            let got = run(vms, policy);
            let percent = |part: u64, of: u64| 100.0 * part as f64 / of.max(1) as f64;
            writeln!(
                out,
                "| {vms} | {} | {:.1} % | {} | {:.1} % | {:.2} | {:.2} | {:.1} | {:.2} % | {} | {} |",
                policy.name(),
                percent(got.warm, got.calls),
                share(policy, got.needless as f64 / got.calls as f64),
                percent(got.after_change.0, got.after_change.1),
                mean(&got.balance),
                mean(&got.surge),
                got.spread,
                percent(got.refused, got.calls),
                share(policy, got.moved_by_join),
                share(policy, got.moved_by_leave),
            )
            .unwrap();
        }
    }
    out.push('\n');
    out.push_str(&speed);
    out
}

/// A figure that only applies to policies with homes.
fn share(policy: Policy, share: f64) -> String {
    if policy.has_homes() { format!("{:.1} %", 100.0 * share) } else { "–".into() }
}

fn mean(figures: &[f64]) -> f64 {
    figures.iter().sum::<f64>() / figures.len().max(1) as f64
}

/// One run.
fn run(vms: usize, policy: Policy) -> Outcome {
    let mut world = World::new(vms);
    let mut traffic = Traffic::new(vms * FUNCTIONS, vms, 7);
    let mut placing = policies::Placing::new(policy, &world, 11);
    let mut outcome = Outcome::default();
    let mut second = 0.0;
    let mut joined = false;
    let mut left = false;
    while let Some(call) = traffic.next(END) {
        // Once a second: ended calls are removed, VMs that joined get more, and load is sampled.
        while call.at >= second {
            world.advance(second);
            placing.weigh(&world);
            let load = world.imbalance();
            match second {
                at if at < WARM_UP => {}
                at if SURGE.contains(&at) => outcome.surge.push(load),
                _ => outcome.balance.push(load),
            }
            second += 1.0;
        }
        if !joined && call.at >= JOIN {
            joined = true;
            outcome.spread = world.spread();
            outcome.moved_by_join = placing.moved(&mut world, traffic.functions(), World::join);
        }
        if !left && call.at >= LEAVE {
            left = true;
            outcome.moved_by_leave = placing.moved(&mut world, traffic.functions(), World::leave);
        }
        world.advance(call.at);
        let placed = placing.place(&mut world, &call);
        if call.at < WARM_UP {
            continue;
        }
        outcome.calls += 1;
        let is_warm = placed == Placed::Warm;
        outcome.warm += u64::from(is_warm);
        outcome.needless += u64::from(placed == Placed::Cold { needless: true });
        outcome.refused += u64::from(placed == Placed::NoRoom);
        if (JOIN..JOIN + 10.0).contains(&call.at) || (LEAVE..LEAVE + 10.0).contains(&call.at) {
            outcome.after_change.0 += u64::from(is_warm);
            outcome.after_change.1 += 1;
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sticky_placement_is_warm_and_even() {
        let [ours, hashing, random, least] =
            [Policy::Epsilon, Policy::Ring, Policy::Random, Policy::LeastLoaded]
                .map(|policy| run(8, policy));
        let warm = |outcome: &Outcome| outcome.warm as f64 / outcome.calls as f64;
        assert!(warm(&ours) > warm(&random) && warm(&ours) > warm(&least));
        assert!(mean(&ours.balance) < mean(&hashing.balance) && mean(&ours.balance) < 1.6);
        assert!(mean(&ours.surge) < mean(&hashing.surge) && mean(&ours.surge) < 1.6);
        assert_eq!((ours.refused, ours.needless), (0, 0));
        // One of nine, and random deviation.
        assert!(ours.moved_by_join < 0.2, "{}", ours.moved_by_join);
    }

    #[test]
    fn the_same_seed_gives_the_same_figures() {
        let [one, two] = [(); 2].map(|()| run(8, Policy::Epsilon));
        assert_eq!((one.calls, one.warm, one.balance), (two.calls, two.warm, two.balance));
    }
}
