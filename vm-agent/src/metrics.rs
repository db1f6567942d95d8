//! The agent's metrics. Names start with `epsilon_`. Gauges (instances, memory) are read from the
//! pools when metrics are gathered, so that they cannot drift; events are counted where they
//! happen.

use crate::container::failure::StartFailure;
use crate::layers::Counts;
use epsilon_api::{ids::FunctionName, vm::StartPhases};
use epsilon_bootstrap::metrics::Disk;
use prometheus::{
    Error, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};

/// Buckets for phases of a start: from a mount, half a millisecond, over a start in a cell, some
/// milliseconds, to a pull.
const START_SECONDS: [f64; 18] = [
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 15.0, 60.0,
];
/// Buckets from a warm engine's fastest answer to a pull.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    starts: IntCounterVec,
    cold_start: HistogramVec,
    crashes: IntCounterVec,
    assignments: IntCounterVec,
    pub(crate) queue_wait: Histogram,
    pub(crate) evictions: IntCounter,
    pub(crate) prewarms: IntCounter,
    pub(crate) prewarms_used: IntCounter,
    pub(crate) engine_seconds: HistogramVec,
    pub(crate) dropped_lines: IntCounterVec,
    pub(crate) layers: Counts,
    /// The disk on which the engine stores images and containers.
    pub(crate) disk: Disk,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, Error> {
        let seconds =
            |name: &str, help: &str| HistogramOpts::new(name, help).buckets(SECONDS.into());
        let metrics = Self {
            starts: IntCounterVec::new(
                Opts::new("epsilon_instance_starts_total", "Starts of instances by outcome."),
                &["function", "outcome"],
            )?,
            cold_start: HistogramVec::new(
                seconds(
                    "epsilon_cold_start_seconds",
                    "Phases of starts that worked, each counted where it was part of the start.",
                )
                .buckets(START_SECONDS.into()),
                &["phase"],
            )?,
            crashes: IntCounterVec::new(
                Opts::new("epsilon_instance_crashes_total", "Instances that ended by themselves."),
                &["function"],
            )?,
            assignments: IntCounterVec::new(
                Opts::new(
                    "epsilon_cell_assignments_total",
                    "Starts that were to go through a cell: by one that was ready, by one booted for it, by an image after all, \
                     or not at all.",
                ),
                &["outcome"],
            )?,
            queue_wait: Histogram::with_opts(seconds(
                "epsilon_queue_wait_seconds",
                "Waits of calls that found no free slot.",
            ))?,
            evictions: IntCounter::new(
                "epsilon_evictions_total",
                "Idle instances evicted to free memory for another function.",
            )?,
            prewarms: IntCounter::new(
                "epsilon_prewarms_total",
                "Instances started shortly before a call was expected.",
            )?,
            prewarms_used: IntCounter::new(
                "epsilon_prewarms_used_total",
                "Those of them that served a call.",
            )?,
            engine_seconds: HistogramVec::new(
                seconds(
                    "epsilon_engine_call_seconds",
                    "Duration of requests to the container engine.",
                ),
                &["call"],
            )?,
            dropped_lines: IntCounterVec::new(
                Opts::new(
                    "epsilon_log_lines_dropped_total",
                    "Log lines lost: beyond their function's share, or because the queue or the disk was full.",
                ),
                &["function"],
            )?,
            layers: Counts::register(registry)?,
            disk: Disk::register(registry, "engine")?,
        };
        registry.register(Box::new(metrics.starts.clone()))?;
        registry.register(Box::new(metrics.cold_start.clone()))?;
        registry.register(Box::new(metrics.crashes.clone()))?;
        registry.register(Box::new(metrics.assignments.clone()))?;
        registry.register(Box::new(metrics.queue_wait.clone()))?;
        registry.register(Box::new(metrics.evictions.clone()))?;
        registry.register(Box::new(metrics.prewarms.clone()))?;
        registry.register(Box::new(metrics.prewarms_used.clone()))?;
        registry.register(Box::new(metrics.engine_seconds.clone()))?;
        registry.register(Box::new(metrics.dropped_lines.clone()))?;
        Ok(metrics)
    }

    pub(crate) fn started(&self, function: &FunctionName, phases: &StartPhases) {
        self.starts.with_label_values(&[function.as_str(), "ready"]).inc();
        // Exists before its first crash: a rate does not see the first increment of a new series.
        self.crashes.with_label_values(&[function.as_str()]);
        for (phase, took) in [
            ("pull", phases.pull),
            ("layers", phases.layers),
            ("cell", phases.cell),
            ("create", phases.create),
            ("start", phases.start),
            ("init", phases.init),
            ("total", phases.total()),
        ] {
            // A start in a cell creates nothing, and one from an image has no cell.
            if !took.is_zero() {
                self.cold_start.with_label_values(&[phase]).observe(took.as_secs_f64());
            }
        }
    }

    pub(crate) fn start_failed(&self, function: &FunctionName, failure: &StartFailure) {
        self.starts.with_label_values(&[function.as_str(), failure.outcome()]).inc();
    }

    /// Counts the outcome of a start that was to go through a cell.
    pub(crate) fn assigned(&self, outcome: &str) {
        self.assignments.with_label_values(&[outcome]).inc();
    }

    pub(crate) fn crashed(&self, function: &FunctionName) {
        self.crashes.with_label_values(&[function.as_str()]).inc();
    }

    /// The last version of the function is gone from this VM.
    pub(crate) fn forget(&self, function: &FunctionName) {
        let name = function.as_str();
        for outcome in ["ready", "init_failed", "no_capacity", "called_off"] {
            // A missing series is fine.
            drop(self.starts.remove_label_values(&[name, outcome]));
        }
        drop(self.crashes.remove_label_values(&[name]));
        drop(self.dropped_lines.remove_label_values(&[name]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn phases_outside_a_start_are_not_counted() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let ms = Duration::from_millis;
        let layers = ms(1);
        let cell = Duration::from_micros(400);
        let init = ms(3);
        let in_a_cell = StartPhases { layers, cell, init, ..StartPhases::default() };
        metrics.started(&FunctionName::parse("hello").unwrap(), &in_a_cell);
        let family =
            registry.gather().into_iter().find(|f| f.name() == "epsilon_cold_start_seconds");
        let mut counted: Vec<_> = family
            .unwrap()
            .get_metric()
            .iter()
            .map(|metric| metric.get_label()[0].value().to_owned())
            .collect();
        counted.sort();
        assert_eq!(counted, ["cell", "init", "layers", "total"]);
        let crashes =
            registry.gather().into_iter().find(|f| f.name() == "epsilon_instance_crashes_total");
        assert_eq!(crashes.unwrap().get_metric().len(), 1, "exists before the first one");
        // A mount can be distinguished from a whole start in a cell.
        let cell = metrics.cold_start.with_label_values(&["cell"]);
        assert_eq!(cell.get_sample_count(), 1);
        assert!(START_SECONDS.is_sorted() && START_SECONDS[0] <= 0.0005);
    }
}
