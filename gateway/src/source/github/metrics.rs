//! `epsilon_hooks_total` and `epsilon_hook_statuses_total`: results of deliveries and of commit
//! statuses.

use prometheus::{IntCounterVec, Opts, Registry};

/// The metrics of webhooks. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct HookMetrics {
    hooks: IntCounterVec,
    statuses: IntCounterVec,
}

/// The result of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A `ping`.
    Pong,
    /// Its commit is being deployed, or waits for that.
    Accepted,
    /// It deploys nothing.
    Ignored,
    /// It was delivered before.
    Replayed,
    /// Its signature is missing or invalid.
    Unsigned,
    /// It is malformed.
    Invalid,
    /// It is too large, or there are too many at once.
    TooMuch,
    /// This gateway cannot accept it now.
    Unable,
}

impl Outcome {
    const ALL: [Self; 8] = [
        Self::Pong,
        Self::Accepted,
        Self::Ignored,
        Self::Replayed,
        Self::Unsigned,
        Self::Invalid,
        Self::TooMuch,
        Self::Unable,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pong => "pong",
            Self::Accepted => "accepted",
            Self::Ignored => "ignored",
            Self::Replayed => "replayed",
            Self::Unsigned => "unsigned",
            Self::Invalid => "invalid",
            Self::TooMuch => "too_much",
            Self::Unable => "unable",
        }
    }
}

impl HookMetrics {
    /// Creates the metrics and registers them.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &["outcome"])?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let metrics = Self {
            hooks: counter("epsilon_hooks_total", "Webhook deliveries, by outcome.")?,
            statuses: counter(
                "epsilon_hook_statuses_total",
                "Commit statuses sent to GitHub, by outcome.",
            )?,
        };
        // All series exist before the first delivery.
        for outcome in Outcome::ALL {
            metrics.hooks.with_label_values(&[outcome.as_str()]);
        }
        Ok(metrics)
    }

    /// Counts a delivery.
    pub(crate) fn delivered(&self, outcome: Outcome) {
        self.hooks.with_label_values(&[outcome.as_str()]).inc();
    }

    /// Counts a commit status.
    pub(crate) fn status_sent(&self, taken: bool) {
        let outcome = if taken { "taken" } else { "lost" };
        self.statuses.with_label_values(&[outcome]).inc();
    }
}
