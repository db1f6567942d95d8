//! `epsilon_placement_*` and `epsilon_retries_*`: where calls go, why VMs are passed over, what is
//! retried. The handles of all label values are created once: counting is one atomic operation.

use crate::invoke::retry::outcome::{Denied, Retry};
use epsilon_placement::choice::{Choice, Penalty, Prewarm};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// Metrics of placement and retries.
#[derive(Debug)]
pub(crate) struct PlacementMetrics {
    /// By [`position`], then by what the VM has of the version.
    placed: [[IntCounter; 3]; 3],
    passed: [IntCounter; Penalty::ALL.len()],
    retried: [IntCounter; Retry::ALL.len()],
    denied: [IntCounter; Denied::ALL.len()],
    fetches: IntCounter,
    starts: IntCounter,
}

const POSITIONS: [&str; 3] = ["home", "neighbour", "far"];
const HELD: [&str; 3] = ["warm", "image", "nothing"];

impl PlacementMetrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let vec = |name: &str, help: &str, labels: &[&str]| {
            let made = IntCounterVec::new(Opts::new(format!("epsilon_{name}"), help), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let placed = vec(
            "placements_total",
            "Attempts of calls, by the VM's position in the function's order and by what it has of the function.",
            &["position", "held"],
        )?;
        let passed = vec(
            "placement_passed_over_total",
            "VMs that were not chosen for a call, by reason.",
            &["reason"],
        )?;
        let retried = vec("retries_total", "Calls retried on another VM, by reason.", &["reason"])?;
        let denied = vec(
            "retries_denied_total",
            "Calls that failed without a retry on another VM, by reason.",
            &["reason"],
        )?;
        let counter = |name: &str, help: &str| {
            let made = IntCounter::new(format!("epsilon_{name}"), help)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let fetches = counter(
            "placement_fetches_total",
            "Images prewarmed on a function's home VM while a call went to another VM.",
        )?;
        let starts = counter(
            "placement_starts_total",
            "Instances prewarmed on another VM while a call stayed at a home VM over its bound.",
        )?;
        Ok(Self {
            placed: POSITIONS
                .map(|position| HELD.map(|held| placed.with_label_values(&[position, held]))),
            passed: Penalty::ALL.map(|penalty| passed.with_label_values(&[penalty.as_str()])),
            retried: Retry::ALL.map(|why| retried.with_label_values(&[why.as_str()])),
            denied: Denied::ALL.map(|why| denied.with_label_values(&[why.as_str()])),
            fetches,
            starts,
        })
    }

    pub(crate) fn placed(&self, pick: &Choice) {
        self.placed[position(pick.step)][pick.locality as usize].inc();
    }

    pub(crate) fn passed_over(&self, penalty: Penalty) {
        // `Nothing` is not a reason and has no counter.
        if let Some(at) = (penalty as usize).checked_sub(1) {
            self.passed[at].inc();
        }
    }

    pub(crate) fn prewarm(&self, prewarm: Prewarm) {
        match prewarm {
            Prewarm::PullImage => self.fetches.inc(),
            Prewarm::StartInstance => self.starts.inc(),
        }
    }

    pub(crate) fn retried(&self, retry: Retry) {
        self.retried[retry as usize].inc();
    }

    pub(crate) fn denied(&self, denied: Denied) {
        self.denied[denied as usize].inc();
    }
}

/// Home, one of the next two, or further away.
fn position(step: u32) -> usize {
    match step {
        0 => 0,
        1 | 2 => 1,
        3.. => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use epsilon_placement::choice::Locality;

    #[test]
    fn labels_stand_where_they_are_counted() {
        let registry = Registry::new();
        let metrics = PlacementMetrics::new(&registry).unwrap();
        for penalty in Penalty::ALL {
            metrics.passed_over(penalty);
        }
        metrics.passed_over(Penalty::Nothing);
        metrics.passed_over(Penalty::Room);
        metrics.retried(Retry::Repeatable);
        metrics.denied(Denied::Budget);
        let pick = Choice {
            vm: 7,
            step: 1,
            penalty: Penalty::Nothing,
            locality: Locality::Warm,
            more: false,
            prewarm: None,
        };
        metrics.placed(&pick);
        metrics.placed(&Choice { step: 9, locality: Locality::Nothing, ..pick });
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            r#"epsilon_placement_passed_over_total{reason="room"} 2"#,
            r#"epsilon_placement_passed_over_total{reason="drain"} 1"#,
            r#"epsilon_retries_total{reason="repeatable"} 1"#,
            r#"epsilon_retries_total{reason="refused"} 0"#,
            r#"epsilon_retries_denied_total{reason="budget"} 1"#,
            r#"epsilon_placements_total{held="warm",position="neighbour"} 1"#,
            r#"epsilon_placements_total{held="nothing",position="far"} 1"#,
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
