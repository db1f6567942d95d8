//! How long an instance stays after its call, one function at a time, with memory for all. The
//! adaptive policy is the agent's own code with its default settings.

use super::trace::{Function, HOURS};
use epsilon_vm_agent::keepalive::histogram::{Histogram, REACH};
use epsilon_vm_agent::keepalive::policy;
use epsilon_vm_agent::keepalive::policy::Settings;
use std::time::Duration;

/// Time of a start besides the load of the code: from an image, as `make bench` measures it, and in
/// a cell.
const FROM_IMAGE: f64 = 0.25;
const IN_CELL: f64 = 0.005;
/// Without keep-alive, this much memory is reserved: two cells of the default size.
const CELLS_GIB: f64 = 0.5;
/// The agent's defaults.
const SETTINGS: Settings =
    Settings { default: Duration::from_secs(300), min: Duration::from_secs(30), max: REACH };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// This many minutes, for all functions.
    Fixed(u32),
    /// The agent's own policy.
    Adaptive,
    /// Each call starts an instance, in a cell.
    Nothing,
}

/// Result of one run.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) calls: u64,
    pub(crate) cold: u64,
    /// Share of cold calls, of each function with more than one call; the first one is cold
    /// whatever the policy.
    shares: Vec<f64>,
    pub(crate) idle_gib_hours: f64,
    /// Seconds that callers waited in all, if all starts were of that kind.
    pub(crate) waited_images: f64,
    pub(crate) waited_cells: f64,
}

impl Policy {
    pub(crate) const ALL: [Self; 6] = [
        Self::Fixed(5),
        Self::Fixed(10),
        Self::Fixed(20),
        Self::Fixed(60),
        Self::Adaptive,
        Self::Nothing,
    ];

    pub(crate) fn name(self) -> String {
        match self {
            Self::Fixed(minutes) => format!("fixed, {minutes} min"),
            Self::Adaptive => "**adaptive**".into(),
            Self::Nothing => "none: a cell for each call".into(),
        }
    }
}

impl Outcome {
    /// The share of cold calls that three of four functions do not exceed, as the paper reports it.
    pub(crate) fn quartile(&self, of_four: usize) -> f64 {
        let mut shares = self.shares.clone();
        shares.sort_by(f64::total_cmp);
        shares.get(shares.len() * of_four / 4).copied().unwrap_or(0.0)
    }

    /// Adds the result of one function.
    pub(crate) fn add(&mut self, function: &Function, calls: u64, cold: u64) {
        self.calls += calls;
        self.cold += cold;
        if calls > 1 {
            self.shares.push(cold as f64 / calls as f64);
        }
        self.waited_images += cold as f64 * (FROM_IMAGE + function.loads);
        self.waited_cells += cold as f64 * (IN_CELL + function.loads);
    }
}

/// Replays the trace.
pub(crate) fn run(functions: &[Function], policy: Policy) -> Outcome {
    let mut outcome = Outcome::default();
    for function in functions {
        let (mut calls, mut cold, mut idle) = (0, 0, 0.0);
        let mut pauses = Histogram::default();
        let mut ended: Option<f64> = None;
        for call in function.calls() {
            calls += call.count;
            let pause = ended.map(|ended| (call.at - ended).max(0.0));
            let (is_warm, stood) = match (policy, pause) {
                (Policy::Nothing, _) => {
                    cold += call.count - 1;
                    (false, 0.0)
                }
                (Policy::Fixed(_) | Policy::Adaptive, None) => (false, 0.0),
                (Policy::Fixed(minutes), Some(pause)) => stays(pause, f64::from(minutes) * 60.0),
                // Shorter than any decision, so the exact value makes no difference.
                (Policy::Adaptive, Some(pause)) if pause <= SETTINGS.min.as_secs_f64() => {
                    (true, pause)
                }
                (Policy::Adaptive, Some(pause)) => {
                    let choice = policy::choose(&pauses, None, &SETTINGS);
                    let (is_warm, stood) = stays(pause, choice.idle.as_secs_f64());
                    match choice.ready {
                        Some(ready) if !is_warm => {
                            let (after, until) =
                                (ready.after.as_secs_f64(), ready.until.as_secs_f64());
                            let ahead = (pause.min(until) - after).max(0.0);
                            ((after..until).contains(&pause), stood + ahead)
                        }
                        _ => (is_warm, stood),
                    }
                }
            };
            if policy == Policy::Adaptive
                && let Some(pause) = pause
            {
                pauses.add(Duration::from_secs_f64(pause));
            }
            cold += u64::from(!is_warm);
            idle += stood;
            ended = Some(call.at + function.runs);
        }
        outcome.idle_gib_hours += idle / 3600.0 * function.memory as f64 / f64::from(1 << 30);
        outcome.add(function, calls, cold);
    }
    if policy == Policy::Nothing {
        outcome.idle_gib_hours = CELLS_GIB * HOURS as f64;
    }
    outcome
}

/// Whether an instance that stays for so long meets the call after this pause, and how long it was
/// idle.
fn stays(pause: f64, idle: f64) -> (bool, f64) {
    (pause <= idle, pause.min(idle))
}
