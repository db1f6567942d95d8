//! Metrics of layers. Registered by `crate::metrics`.

use prometheus::{Error, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};
use std::time::Duration;

/// Buckets: from a small file on the same machine to a large installation from a distant registry.
const SECONDS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 120.0];

/// Counters of layers. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    bytes: IntGauge,
    fetches: IntCounterVec,
    seconds: HistogramVec,
}

/// The source of a layer; the metric's label value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    BuilderCache,
    Registry,
    Engine,
}

impl Source {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::BuilderCache => "shelf",
            Self::Registry => "registry",
            Self::Engine => "engine",
        }
    }
}

impl Counts {
    pub(crate) fn register(registry: &Registry) -> Result<Self, Error> {
        let counts = Self {
            bytes: IntGauge::new("epsilon_layers_bytes", "Disk that unpacked code layers take.")?,
            fetches: IntCounterVec::new(
                Opts::new(
                    "epsilon_layer_fetches_total",
                    "Fetches of code layers by source and outcome.",
                ),
                &["source", "outcome"],
            )?,
            seconds: HistogramVec::new(
                HistogramOpts::new(
                    "epsilon_layer_fetch_seconds",
                    "Fetches of code layers that worked, until the layer was unpacked.",
                )
                .buckets(SECONDS.into()),
                &["source"],
            )?,
        };
        registry.register(Box::new(counts.bytes.clone()))?;
        registry.register(Box::new(counts.fetches.clone()))?;
        registry.register(Box::new(counts.seconds.clone()))?;
        Ok(counts)
    }

    pub(super) fn holds(&self, bytes: u64) {
        self.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// A fetch ended; `took` is set if it succeeded.
    pub(super) fn fetched(&self, source: Source, outcome: &str, took: Option<Duration>) {
        self.fetches.with_label_values(&[source.as_str(), outcome]).inc();
        if let Some(took) = took {
            self.seconds.with_label_values(&[source.as_str()]).observe(took.as_secs_f64());
        }
    }
}
