//! The scaling policies: the gateway's own with some settings, and plain target tracking as a cloud
//! offers it, with the same target.

use super::{FEWEST, MOST, fleet::Fleet, traffic::Shape};
use epsilon_autoscaler::{
    config::{Config, Settings},
    policy::Policy,
};
use jiff::Timestamp;
use std::time::Duration;

/// Called once a second.
pub(crate) trait Scaler {
    fn wanted(&mut self, second: u64, now: Timestamp, fleet: &Fleet) -> u32;
}

/// The policies that make sense for this traffic, by name.
pub(crate) fn all(shape: Shape) -> Vec<(&'static str, Box<dyn Scaler>)> {
    let mut all: Vec<(&'static str, Box<dyn Scaler>)> = vec![
        ("target tracking, 75 %", Box::new(TargetTracking::default())),
        ("Epsilon, no headroom", ours(0, "[]")),
        ("Epsilon, headroom 100 places", ours(100, "[]")),
    ];
    if let Shape::Spike = shape {
        let spikes = r#"[{"from":"07:00","to":"07:10","zone":"UTC","at_least":12},
                         {"from":"08:30","to":"08:40","zone":"UTC","at_least":12}]"#;
        all.push(("Epsilon, scheduled: 12 VMs for the spikes", ours(0, spikes)));
    }
    all
}

fn ours(headroom: u32, schedule: &str) -> Box<dyn Scaler> {
    let schedule = serde_json::from_str(schedule).expect("it is written above");
    let settings = Settings { min: FEWEST, max: MOST, headroom, schedule, ..Settings::default() };
    let config = Config::new(settings).expect("these settings hold");
    Box::new(Ours(Policy::new(config.policy())))
}

struct Ours(Policy);

impl Scaler for Ours {
    fn wanted(&mut self, second: u64, now: Timestamp, fleet: &Fleet) -> u32 {
        self.0.decide(Duration::from_secs(second), now, &fleet.sample()).wanted
    }
}

/// Target tracking over a metric of one minute, as EC2 Auto Scaling documents it: more after three
/// minutes above the target, fewer after fifteen below nine tenths of it, in proportion. Its metric
/// is the machines' utilization, which does not include a queue.
#[derive(Debug, Default)]
struct TargetTracking {
    /// The minute that is being measured.
    minute: Vec<f64>,
    above: u32,
    below: u32,
    wanted: u32,
}

const TARGET: f64 = 0.75;
const MINUTES_ABOVE: u32 = 3;
const MINUTES_BELOW: u32 = 15;

impl Scaler for TargetTracking {
    fn wanted(&mut self, _: u64, _: Timestamp, fleet: &Fleet) -> u32 {
        self.wanted = self.wanted.max(FEWEST);
        self.minute.push(fleet.utilisation());
        if self.minute.len() < 60 {
            return self.wanted;
        }
        let metric = self.minute.drain(..).sum::<f64>() / 60.0;
        self.above = if metric > TARGET { self.above + 1 } else { 0 };
        self.below = if metric < 0.9 * TARGET { self.below + 1 } else { 0 };
        let proportional = (fleet.ready() as f64 * metric / TARGET).ceil() as u32;
        if self.above >= MINUTES_ABOVE {
            // Booting VMs count: they are not ordered twice.
            self.wanted = self.wanted.max(proportional);
        } else if self.below >= MINUTES_BELOW {
            self.wanted = self.wanted.min(proportional);
            self.below = 0;
        }
        self.wanted
    }
}
