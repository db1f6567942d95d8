//! `epsilon_*` metrics of the gateway. Handles are looked up once per function, not once per call;
//! the series of a deleted function are removed with its last call.

use super::placement::PlacementMetrics;
use crate::traffic::metrics::TrafficMetrics;
use epsilon_api::{
    admin::DeploymentState,
    error::{CALLER_GONE, CallError},
    ids::FunctionName,
};
use epsilon_bootstrap::log::repeats::Repeats;
use parking_lot::{Mutex, RwLock};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};
use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, Weak},
};

/// Bounds of the call histogram, in seconds: a warm call takes tenths of a millisecond, a slow one
/// a minute.
const CALL_SECONDS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0];

/// All metrics of the gateway.
#[derive(Debug)]
pub(crate) struct Metrics {
    calls: IntCounterVec,
    call_seconds: HistogramVec,
    /// Calls that got an answer of the platform instead of the function's.
    pub(crate) errors: IntCounterVec,
    /// Calls between first byte in and last byte out.
    pub(crate) in_flight: IntGauge,
    /// Answers that ended before their last byte.
    pub(crate) cut: IntCounter,
    /// Open connections on the public listener.
    pub(crate) connections: IntGauge,
    /// Connections that could not be accepted.
    pub(crate) accept_errors: IntCounter,
    /// Bytes of request bodies received.
    pub(crate) bytes_in: IntCounter,
    /// Bytes of response bodies sent.
    pub(crate) bytes_out: IntCounter,
    /// Functions that can be called.
    pub(crate) functions: IntGauge,
    /// Deployments that ended, by state.
    pub(crate) deployments: IntCounterVec,
    /// Bytes of archives (and of small request bodies) received by the control API.
    pub(crate) source_bytes: IntCounter,
    /// Lines of build logs dropped because of a slow reader.
    pub(crate) lost_lines: IntCounter,
    /// Where calls go, and which are retried.
    pub(crate) placement: PlacementMetrics,
    /// Versions of splits.
    pub(crate) traffic: Arc<TrafficMetrics>,
    /// Limits log lines of failures of calls that reached no function.
    pub(super) repeats: Repeats,
    known: Mutex<HashMap<FunctionName, Weak<FunctionMetrics>>>,
}

impl Metrics {
    /// Creates the metrics and registers them.
    pub(crate) fn new(registry: &Registry) -> Result<Arc<Self>, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(format!("epsilon_{name}"), help);
        let seconds = HistogramOpts::new(
            "epsilon_call_seconds",
            "Time of a call from its head to the last byte of its answer.",
        )
        .buckets(CALL_SECONDS.into());
        let body_bytes = IntCounterVec::new(
            opts("body_bytes_total", "Bytes of bodies of calls."),
            &["direction"],
        )?;
        let metrics = Self {
            calls: IntCounterVec::new(
                opts(
                    "calls_total",
                    "Calls that ended, by status; 499 is a caller that hung up. Rare statuses are counted by class: 4xx.",
                ),
                &["function", "code"],
            )?,
            call_seconds: HistogramVec::new(seconds, &["function"])?,
            errors: IntCounterVec::new(
                opts("call_errors_total", "Calls that the platform answered with an error."),
                &["code", "fault"],
            )?,
            in_flight: IntGauge::with_opts(opts("in_flight", "Calls that run now."))?,
            cut: IntCounter::with_opts(opts(
                "answers_cut_total",
                "Answers that ended before their last byte.",
            ))?,
            connections: IntGauge::with_opts(opts(
                "connections",
                "Open connections on the public listener.",
            ))?,
            accept_errors: IntCounter::with_opts(opts(
                "accept_errors_total",
                "Connections that could not be accepted.",
            ))?,
            bytes_in: body_bytes.with_label_values(&["in"]),
            bytes_out: body_bytes.with_label_values(&["out"]),
            functions: IntGauge::with_opts(opts("functions", "Functions that can be called."))?,
            deployments: IntCounterVec::new(
                opts("deployments_total", "Deployments that ended."),
                &["state"],
            )?,
            source_bytes: IntCounter::with_opts(opts(
                "deployment_bytes_total",
                "Bytes of archives received.",
            ))?,
            lost_lines: IntCounter::with_opts(opts(
                "deployment_log_lines_lost_total",
                "Lines of build logs dropped because of a slow reader.",
            ))?,
            placement: PlacementMetrics::new(registry)?,
            traffic: TrafficMetrics::new(registry)?,
            repeats: Repeats::default(),
            known: Mutex::default(),
        };
        // These exist from the start: a rate misses the first increment of a series that appears
        // with it.
        for (code, fault) in CallError::KINDS {
            metrics.errors.with_label_values(&[code, fault.as_str()]);
        }
        for state in [DeploymentState::Done, DeploymentState::Failed] {
            metrics.deployments.with_label_values(&[state.to_string().as_str()]);
        }
        registry.register(Box::new(metrics.calls.clone()))?;
        registry.register(Box::new(metrics.call_seconds.clone()))?;
        registry.register(Box::new(metrics.errors.clone()))?;
        registry.register(Box::new(metrics.in_flight.clone()))?;
        registry.register(Box::new(metrics.cut.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.accept_errors.clone()))?;
        registry.register(Box::new(body_bytes))?;
        registry.register(Box::new(metrics.functions.clone()))?;
        registry.register(Box::new(metrics.deployments.clone()))?;
        registry.register(Box::new(metrics.source_bytes.clone()))?;
        registry.register(Box::new(metrics.lost_lines.clone()))?;
        Ok(Arc::new(metrics))
    }

    /// The metrics of this function; shared by its users.
    pub(crate) fn function(self: &Arc<Self>, name: &FunctionName) -> Arc<FunctionMetrics> {
        let mut known = self.known.lock();
        if let Some(alive) = known.get(name).and_then(Weak::upgrade) {
            return alive;
        }
        let made = Arc::new(FunctionMetrics {
            name: name.clone(),
            seconds: self.call_seconds.with_label_values(&[name.as_str()]),
            by_code: RwLock::default(),
            repeats: Repeats::default(),
            all: Arc::clone(self),
        });
        known.insert(name.clone(), Arc::downgrade(&made));
        made
    }
}

/// The metrics of one function. Its series are removed when this is dropped: after the delete and
/// the last call.
#[derive(Debug)]
pub(crate) struct FunctionMetrics {
    name: FunctionName,
    seconds: Histogram,
    /// By the code that [`counted_as`] returns.
    by_code: RwLock<HashMap<u16, IntCounter>>,
    /// Limits log lines of failures.
    pub(super) repeats: Repeats,
    all: Arc<Metrics>,
}

impl FunctionMetrics {
    /// Counts a call that ended.
    pub(crate) fn ended(&self, status: u16, seconds: f64) {
        self.seconds.observe(seconds);
        let code = counted_as(status);
        if let Some(counter) = self.by_code.read().get(&code) {
            counter.inc();
            return;
        }
        let counter = self.all.calls.with_label_values(&[self.name.as_str(), &*label(code)]);
        counter.inc();
        self.by_code.write().insert(code, counter);
    }
}

/// Statuses that have a series of their own: those that frameworks and proxies use and people alert
/// on. A function may answer any number up to 999, and each would be another series.
#[rustfmt::skip] // one number a line otherwise
const EACH: [u16; 36] = [
    101, 200, 201, 202, 203, 204, 205, 206, 300, 301, 302, 303, 304, 307, 308, 400, 401, 402, 403,
    404, 405, 406, 408, 409, 410, 412, 413, 415, 422, 429, CALLER_GONE, 500, 501, 502, 503, 504,
];

/// The status itself, or the first digit of its class.
fn counted_as(status: u16) -> u16 {
    if EACH.contains(&status) { status } else { status / 100 }
}

/// `404`, `4xx`.
fn label(code: u16) -> Cow<'static, str> {
    match code {
        1 => "1xx".into(),
        2 => "2xx".into(),
        3 => "3xx".into(),
        4 => "4xx".into(),
        5 => "5xx".into(),
        ..100 => "other".into(),
        status => status.to_string().into(),
    }
}

impl Drop for FunctionMetrics {
    fn drop(&mut self) {
        let mut known = self.all.known.lock();
        // If the name has a new owner by now, the series belong to it and must stay.
        let ours = std::ptr::from_ref(self);
        if known.get(&self.name).is_none_or(|owner| owner.as_ptr() != ours) {
            return;
        }
        known.remove(&self.name);
        let name = self.name.as_str();
        // Absent series are fine: they were never counted.
        let _ = self.all.call_seconds.remove_label_values(&[name]);
        for code in self.by_code.get_mut().keys() {
            let _ = self.all.calls.remove_label_values(&[name, &*label(*code)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(registry: &Registry) -> String {
        prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn deleted_functions_lose_series_after_last_call() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let name = FunctionName::parse("pay").unwrap();
        let in_table = metrics.function(&name);
        let in_call = metrics.function(&name);
        in_table.ended(200, 0.1);
        drop(in_table); // deleted
        in_call.ended(504, 0.1);
        assert!(text(&registry).contains(r#"epsilon_calls_total{code="504",function="pay"} 1"#));
        drop(in_call);
        assert!(!text(&registry).contains("pay"));
        metrics.function(&name).ended(200, 0.1);
        drop(metrics.function(&name));
    }

    #[test]
    fn unusual_statuses_share_a_series_per_class() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let function = metrics.function(&FunctionName::parse("pay").unwrap());
        (100..1000).for_each(|status| function.ended(status, 0.1));
        let series = text(&registry).matches("epsilon_calls_total{").count();
        assert_eq!(series, EACH.len() + 6);
        for line in [r#"{code="404",function="pay"} 1"#, r#"{code="2xx",function="pay"} 93"#] {
            assert!(text(&registry).contains(line), "{line}");
        }
        assert!(text(&registry).contains(r#"{code="other",function="pay"} 400"#));
        drop(function);
        assert!(!text(&registry).contains("pay"));
    }

    #[test]
    fn what_may_go_wrong_is_counted_from_the_start() {
        let registry = Registry::new();
        let _metrics = Metrics::new(&registry).unwrap();
        let text = text(&registry);
        for line in [
            r#"epsilon_call_errors_total{code="NO_CAPACITY",fault="platform"} 0"#,
            r#"epsilon_call_errors_total{code="FUNCTION_CRASHED",fault="platform"} 0"#,
            r#"epsilon_deployments_total{state="failed"} 0"#,
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn a_name_that_comes_back_keeps_its_series() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let name = FunctionName::parse("pay").unwrap();
        let old = metrics.function(&name);
        old.ended(200, 0.1);
        // As if the last reference was dropped while another thread requests the name.
        metrics.known.lock().clear();
        let new = metrics.function(&name);
        drop(old);
        new.ended(200, 0.1);
        assert!(text(&registry).contains(r#"epsilon_calls_total{code="200",function="pay"} 2"#));
    }
}
