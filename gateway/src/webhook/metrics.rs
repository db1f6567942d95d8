//! `epsilon_hooks_total` and `epsilon_hook_statuses_total`: what came of deliveries, and of what the hub was told.

use prometheus::{IntCounterVec, Opts, Registry};

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct HookMetrics {
    hooks: IntCounterVec,
    statuses: IntCounterVec,
}

/// What came of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A `ping`.
    Pong,
    /// Its commit is being deployed, or waits for that.
    Accepted,
    /// It is none that deploys anything.
    Ignored,
    /// It has come before.
    Replayed,
    /// Nobody has shown that the hub sent it.
    Unsigned,
    /// It cannot be understood.
    Invalid,
    /// It is too large, or there are too many at once.
    TooMuch,
    /// This gateway cannot take it now.
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
    /// Makes the metrics and puts them into the registry.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &["outcome"])?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let metrics = Self {
            hooks: counter("epsilon_hooks_total", "Webhooks' deliveries, by what came of them.")?,
            statuses: counter(
                "epsilon_hook_statuses_total",
                "Statuses of commits that the hub took, or did not.",
            )?,
        };
        // A graph has its lines before the first delivery.
        for outcome in Outcome::ALL {
            metrics.hooks.with_label_values(&[outcome.as_str()]);
        }
        Ok(metrics)
    }

    /// Counts a delivery.
    pub(crate) fn came(&self, outcome: Outcome) {
        self.hooks.with_label_values(&[outcome.as_str()]).inc();
    }

    /// Counts a status.
    pub(crate) fn status_sent(&self, taken: bool) {
        let outcome = if taken { "taken" } else { "lost" };
        self.statuses.with_label_values(&[outcome]).inc();
    }
}
