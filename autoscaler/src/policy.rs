//! How many VMs are wanted, and why. Pure: time, the wall clock and a [`Sample`] go in every
//! second, a [`Decision`] comes out. Does not act; `plan.rs` turns decisions into steps.
//!
//! ```text
//!            mean of 60 s ─▶ demand ─┐
//! samples ─▶ line of 60 s ─▶ trend ──┼─▶ largest ─▶ ≤ serving + starting_at_once ─▶ largest of 5 min
//!            mean of 6 s ──▶ panic ──┘                                                    └─▶ ≥ min, schedule ─▶ ≤ max
//! ```
//! The two windows, of which the short one applies while load exceeds capacity, are Knative's idea
//! (`kpa`, its pod autoscaler: stable 60 s, panic 10 % of it, no scale-in during panic). Three
//! things differ, because a VM takes a minute or more to start and a pod a second: panic begins
//! when every place is taken rather than at twice the target; a trend looks as far ahead as a VM
//! takes to boot; and the count falls only after fewer were enough for minutes.

use super::{
    config::PolicyConfig,
    history::{History, Moment, WindowMax},
    sample::Sample,
    schedule::{self, AtLeast},
};
use jiff::Timestamp;
use std::{fmt, time::Duration};

/// How well a line must fit the window to be used; for noise alone the fit stays far below.
const MIN_FIT: f64 = 0.5;
/// One VM fewer is wanted only if this much more demand would still not need it: the mean of a
/// noisy minute varies by less, and a count near a border would flap.
const SLACK: f64 = 0.05;
/// New VMs first work off the queue: for this long after the last of them started, waiting calls
/// say nothing about future demand. Longer than `vm_agent.queue_wait` lets a call wait, plus the
/// window after it.
const SETTLE_TIME: Duration = Duration::from_secs(15);
/// Tolerance for floating-point errors: they must not order a machine.
const ROUNDING: f64 = 1e-6;

/// The policy and its state.
#[derive(Clone, Debug)]
pub struct Policy {
    config: PolicyConfig,
    demand: History,
    wanted_history: WindowMax,
    /// Time of the first sample.
    begun: Option<Moment>,
    /// Until when the short window applies.
    panic_until: Option<Moment>,
    /// Places of one VM, as last observed.
    vm_places: Option<f64>,
    /// The last wanted count before limits; `None` before the first sample.
    last: Option<u32>,
    /// VMs that took calls at the last sample, and until when the newest ones work off a queue.
    ready: u32,
    settled_at: Moment,
}

/// The result of the policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// VMs wanted.
    pub wanted: u32,
    /// The reason.
    pub reason: Reason,
    /// Places needed: the mean over the stable window.
    pub demand: f64,
    /// Whether the short window applies.
    pub panicking: bool,
}

/// Why this many VMs are wanted.
#[derive(Clone, Debug, PartialEq)]
pub enum Reason {
    /// Demand over the stable window.
    Demand {
        /// Its mean, in places.
        places: f64,
        /// The window.
        window: Duration,
    },
    /// Every place was taken; demand over the panic window.
    Panic {
        /// Its mean, in places.
        places: f64,
        /// The window.
        window: Duration,
    },
    /// The demand expected when a VM ordered now takes calls.
    Trend {
        /// Expected places.
        places: f64,
        /// How far ahead.
        ahead: Duration,
    },
    /// More are needed, but this many may start at once at most.
    Starting {
        /// How many are needed.
        needed: u32,
        /// The setting.
        at_once: u32,
    },
    /// One fewer would be just enough.
    Slack {
        /// How many are just enough.
        needed: u32,
    },
    /// Fewer are enough, but not for long enough yet.
    Held {
        /// How many are enough now.
        needed: u32,
        /// For how much longer.
        remaining: Duration,
    },
    /// A scheduled minimum.
    Schedule {
        /// The window as configured.
        window: String,
    },
    /// The group's minimum.
    Minimum,
    /// More are needed; this is the maximum.
    Maximum {
        /// How many are needed.
        needed: u32,
    },
}

impl Reason {
    /// The reason in one word, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Demand { .. } => "demand",
            Self::Panic { .. } => "panic",
            Self::Trend { .. } => "trend",
            Self::Starting { .. } => "starting",
            Self::Slack { .. } => "slack",
            Self::Held { .. } => "held",
            Self::Schedule { .. } => "schedule",
            Self::Minimum => "minimum",
            Self::Maximum { .. } => "maximum",
        }
    }

    /// All values of [`Self::word`].
    pub const LABELS: [&'static str; 9] =
        ["demand", "panic", "trend", "starting", "slack", "held", "schedule", "minimum", "maximum"];
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Demand { places, window } => {
                write!(f, "{places:.1} places were busy over the last {window:?}")
            }
            Self::Panic { places, window } => {
                write!(f, "every place was taken; {places:.1} were needed over the last {window:?}")
            }
            Self::Trend { places, ahead } => {
                write!(f, "demand rises; {places:.1} places are expected in {ahead:?}")
            }
            Self::Starting { needed, at_once } => {
                write!(f, "{needed} are needed; at most {at_once} start at the same time")
            }
            Self::Slack { needed } => {
                write!(f, "{needed} are just enough; a little more demand would need one more")
            }
            Self::Held { needed, remaining } => {
                let seconds = Duration::from_secs(remaining.as_secs());
                let are = if *needed == 1 { "is" } else { "are" };
                write!(f, "{needed} {are} enough now; held for another {seconds:?}")
            }
            Self::Schedule { window } => write!(f, "scheduled: {window}"),
            Self::Minimum => f.write_str("the minimum"),
            Self::Maximum { needed } => write!(f, "{needed} are needed; this is the maximum"),
        }
    }
}

impl Policy {
    /// A policy without samples.
    pub fn new(config: &PolicyConfig) -> Self {
        Self {
            demand: History::new(config.stable_window),
            wanted_history: WindowMax::new(config.scale_in_after),
            begun: None,
            panic_until: None,
            vm_places: None,
            last: None,
            ready: 0,
            settled_at: Moment::ZERO,
            config: config.clone(),
        }
    }

    /// Takes one sample. `at` never goes back; `now` is the wall clock, used for schedules only.
    pub fn decide(&mut self, at: Moment, now: Timestamp, sample: &Sample) -> Decision {
        if sample.ready > 0 && sample.vm_places > 0.0 {
            self.vm_places = Some(sample.vm_places);
        }
        // The past is unknown, so the existing VMs may be needed. VMs report one by one.
        if at < *self.begun.get_or_insert(at) + self.config.stable_window {
            self.wanted_history.push(at, sample.current.min(self.config.max));
        }
        if sample.ready > self.ready && self.last.is_some() {
            self.settled_at = at + SETTLE_TIME;
        }
        self.ready = sample.ready;
        let queued = if at < self.settled_at { sample.queued } else { 0.0 };
        self.demand.push(at, sample.demand - queued);
        let stable = self.demand.mean(at, self.config.stable_window);
        let needed = self.needed(at, stable, sample);
        let needed = self.with_slack(needed, stable, sample);
        let (needed, reason) = self.limited(needed, sample);
        self.wanted_history.push(at, needed);
        let (wanted, reason) = match self.wanted_history.get(at) {
            Some((largest, remaining)) if largest > needed => {
                (largest, Reason::Held { needed, remaining })
            }
            _ => (needed, reason),
        };
        self.last = Some(wanted);
        let floor = schedule::at_least(&self.config.schedule, now, self.config.boot_time);
        let (wanted, reason) = self.within_limits((wanted, reason), needed, floor);
        let panicking = self.panic_until.is_some_and(|until| at < until);
        Decision { wanted, reason, demand: stable, panicking }
    }

    /// The largest of the three estimates of the VMs needed.
    fn needed(&mut self, at: Moment, stable: f64, sample: &Sample) -> (u32, Reason) {
        let PolicyConfig { stable_window, panic_window, boot_time, .. } = self.config;
        let panic = self.demand.mean(at, panic_window);
        if panic >= sample.places * self.config.panic_at && panic > 0.0 {
            self.panic_until = Some(at + stable_window);
        }
        let vms = |places| self.vms_for(places, sample);
        let demand = Reason::Demand { places: stable, window: stable_window };
        let mut largest = (vms(stable), demand);
        let mut consider = |vms: u32, reason| {
            if vms > largest.0 {
                largest = (vms, reason);
            }
        };
        if self.panic_until.is_some_and(|until| at < until) {
            consider(vms(panic), Reason::Panic { places: panic, window: panic_window });
        }
        if let Some(line) = self.demand.line(at).filter(|l| l.slope > 0.0 && l.fit >= MIN_FIT) {
            let ahead = line.now + line.slope * boot_time.as_secs_f64();
            let places = ahead.min(stable.max(panic) * self.config.trend_limit);
            consider(vms(places), Reason::Trend { places, ahead: boot_time });
        }
        largest
    }

    /// VMs of the group needed for this many busy places, including the free places to keep.
    fn vms_for(&self, demand: f64, sample: &Sample) -> u32 {
        let places = (demand / self.config.target).max(demand + f64::from(self.config.headroom));
        let Some(vm_places) = self.vm_places else {
            // No VM shows its size yet: order one, which will.
            return u32::from(demand > sample.outside);
        };
        let vms = ((places - sample.outside) / vm_places - ROUNDING).ceil();
        vms.max(0.0) as u32 // a float that is too large becomes the largest number
    }

    /// Keeps one VM more than needed, if it was wanted before, while the slack is below [`SLACK`].
    fn with_slack(&self, needed: (u32, Reason), stable: f64, sample: &Sample) -> (u32, Reason) {
        let (fewest, reason) = needed;
        let more = self.vms_for(stable * (1.0 + SLACK), sample);
        let wanted = more.min(fewest.saturating_add(1)).min(self.last.unwrap_or(0));
        if wanted > fewest { (wanted, Reason::Slack { needed: fewest }) } else { (fewest, reason) }
    }

    fn limited(&self, (needed, reason): (u32, Reason), sample: &Sample) -> (u32, Reason) {
        let at_once = self.config.starting_at_once;
        let most = sample.ready.saturating_add(at_once);
        if needed > most { (most, Reason::Starting { needed, at_once }) } else { (needed, reason) }
    }

    /// A minimum is also the reason if the held count is as large: it holds for longer.
    fn within_limits(
        &self,
        (wanted, reason): (u32, Reason),
        needed: u32,
        scheduled: Option<AtLeast>,
    ) -> (u32, Reason) {
        let PolicyConfig { min, max, .. } = self.config;
        let decides = |floor: u32| floor >= wanted && floor > needed;
        let (wanted, reason) = match scheduled {
            Some(AtLeast { vms, window }) if vms > min && decides(vms) => {
                (vms, Reason::Schedule { window })
            }
            _ if decides(min) => (min, Reason::Minimum),
            _ => (wanted, reason),
        };
        if wanted > max { (max, Reason::Maximum { needed: wanted }) } else { (wanted, reason) }
    }
}

#[cfg(test)]
mod tests;
