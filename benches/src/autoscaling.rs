//! `make bench ARGS=autoscaling`: hours of traffic in seconds, through the real policy of
//! `autoscaler/src` and through a plain target-tracking policy, over a fleet that is only
//! counted. Shows what each costs: calls that waited, calls that were refused, VM-hours.
//!
//! Deterministic: the same numbers on every machine. Not a measure of speed, and not of placement:
//! a call takes the first free slot, and an instance starts in no time. The model covers what an
//! autoscaler can influence: slots, VMs that need 60 to 90 seconds to boot, and drains.
//!
//! | module | what it is |
//! |---|---|
//! | [`traffic`] | surges and spikes, call by call |
//! | [`fleet`] | VMs, slots, the queue |
//! | [`scalers`] | our policy with some settings, and target tracking |

mod fleet;
mod scalers;
mod traffic;

use fleet::Fleet;
use jiff::{SignedDuration, Timestamp};
use scalers::Scaler;
use std::fmt::Write;
use traffic::{Shape, Traffic};

/// Length of each run, seconds.
const HOURS: u64 = 4;
const SECONDS: u64 = HOURS * 3600;
/// Steps of the simulation in a second.
pub(crate) const STEPS: u64 = 10;
/// VMs at the start of each run, and their limits.
const FEWEST: u32 = 2;
const MOST: u32 = 40;

/// Result of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Outcome {
    calls: u64,
    delayed: u64,
    refused: u64,
    vm_hours: f64,
    most_vms: usize,
}

/// Runs all of it; returns the table as markdown.
pub(crate) fn table() -> String {
    let mut out = String::from(
        "| traffic | policy | calls that waited | calls refused | VM-hours | most VMs |\n|---|---|---:|---:|---:|---:|\n",
    );
    for shape in Shape::ALL {
        for (name, scaler) in scalers::all(shape) {
            let got = run(shape, scaler);
            let share = |part: u64| 100.0 * part as f64 / got.calls as f64;
            writeln!(
                out,
                "| {} | {name} | {:.2} % | {:.2} % | {:.1} | {} |",
                shape.name(),
                share(got.delayed),
                share(got.refused),
                got.vm_hours,
                got.most_vms,
            )
            .unwrap();
        }
    }
    out
}

/// One run. It begins on a Friday at 06:00 UTC.
fn run(shape: Shape, mut scaler: Box<dyn Scaler>) -> Outcome {
    let begun: Timestamp = "2026-11-20T06:00:00Z".parse().unwrap();
    let mut traffic = Traffic::new(shape, 7);
    let mut fleet = Fleet::new(FEWEST);
    let mut outcome = Outcome::default();
    for second in 0..SECONDS {
        for step in second * STEPS..(second + 1) * STEPS {
            let calls = traffic.arrivals(step);
            outcome.calls += calls.len() as u64;
            fleet.step(step, &calls);
        }
        let now = begun + SignedDuration::from_secs(second as i64);
        let wanted = scaler.wanted(second, now, &fleet).clamp(FEWEST, MOST);
        fleet.scale(second * STEPS, wanted);
        outcome.vm_hours += fleet.vms() as f64 / 3600.0;
        outcome.most_vms = outcome.most_vms.max(fleet.vms());
    }
    Outcome { delayed: fleet.delayed, refused: fleet.refused, ..outcome }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(shape: Shape, name: &str) -> Outcome {
        let mut all = scalers::all(shape).into_iter();
        let (_, scaler) = all.find(|(known, _)| known.contains(name)).unwrap();
        run(shape, scaler)
    }

    #[test]
    fn the_same_run_twice_is_the_same() {
        let twice = [(); 2].map(|()| outcome(Shape::Spike, "no headroom"));
        assert_eq!(twice[0], twice[1]);
    }

    /// The claim of docs/autoscaling.md: surges are followed, spikes need headroom or a schedule.
    #[test]
    fn surges_are_followed_spikes_need_preparation() {
        // Of ten thousand calls.
        let waited = |got: Outcome| (got.delayed + got.refused) * 10_000 / got.calls;
        let tracking = outcome(Shape::Surge, "target tracking");
        let surge = outcome(Shape::Surge, "no headroom");
        assert!(waited(surge) < 30 && surge.refused == 0, "{surge:?}");
        assert!(waited(tracking) > 3 * waited(surge), "{tracking:?}");
        assert!(surge.vm_hours < 1.1 * tracking.vm_hours, "{surge:?}");

        let spike = outcome(Shape::Spike, "no headroom");
        assert!(waited(spike) > 500 && spike.refused > 0, "{spike:?}");
        for prepared in ["headroom 100", "scheduled"] {
            let prepared = outcome(Shape::Spike, prepared);
            assert!(waited(prepared) < 200 && prepared.refused == 0, "{prepared:?}");
        }
    }
}
