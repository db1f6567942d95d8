//! What the autoscaler did and why: metrics, log lines, and the recent decisions for `GET
//! /v1/autoscaler`. Written by `runner.rs`; read by the control API.

use super::{
    config::{Config, Driver},
    policy::{Decision, Reason},
    sample::Sample,
};
use epsilon_api::autoscaler::{AutoscalerDecision, AutoscalerInfo, AutoscalerState};
use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus::{Gauge, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use std::collections::VecDeque;

/// The autoscaler's metrics, log and recent decisions.
#[derive(Debug)]
pub struct Journal {
    shown: Mutex<Shown>,
    keep: usize,
    metrics: Metrics,
}

#[derive(Debug)]
struct Shown {
    info: AutoscalerInfo,
    /// Oldest first.
    decisions: VecDeque<AutoscalerDecision>,
}

/// The result of one round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acted {
    pub state: AutoscalerState,
    /// VMs wanted when it began, and why.
    pub wanted: u32,
    pub reason: String,
    /// The steps as text.
    pub steps: Vec<String>,
    /// The problem with a hint, and its kind in one word.
    pub problem: Option<(&'static str, String)>,
}

impl Journal {
    pub(crate) fn new(config: &Config, registry: &Registry) -> Result<Self, prometheus::Error> {
        let info = AutoscalerInfo {
            driver: config.driver.as_str().to_owned(),
            state: AutoscalerState::default(),
            dry_run: config.dry_run,
            wanted: 0,
            current: 0,
            ready: 0,
            reason: "no sample yet".to_owned(),
            demand: 0.0,
            places: 0.0,
            panicking: false,
            problem: None,
            decisions: Vec::new(),
        };
        Ok(Self {
            shown: Mutex::new(Shown { info, decisions: VecDeque::new() }),
            keep: config.decisions,
            metrics: Metrics::new(registry, config.driver != Driver::None)?,
        })
    }

    /// The state for the control API.
    pub fn info(&self) -> AutoscalerInfo {
        let shown = self.shown.lock();
        let decisions = shown.decisions.iter().rev().cloned().collect();
        AutoscalerInfo { decisions, ..shown.info.clone() }
    }

    /// Called every second with the wanted count. A changed count is recorded as a decision.
    pub fn decided(&self, now: Timestamp, decision: &Decision, sample: &Sample) {
        self.metrics.decided(decision, sample);
        let mut shown = self.shown.lock();
        let before = shown.info.wanted;
        let info = &mut shown.info;
        info.wanted = decision.wanted;
        info.current = sample.current;
        info.ready = sample.ready;
        info.reason = decision.reason.to_string();
        info.demand = round(decision.demand);
        info.places = round(sample.places);
        info.panicking = decision.panicking;
        if decision.wanted == before {
            return;
        }
        let wanted = decision.wanted;
        let current = sample.current;
        let reason = &info.reason;
        if info.state == AutoscalerState::Leading {
            tracing::info!(wanted, before, current, %reason, "Wanted number of VMs changed.");
        } else {
            tracing::debug!(wanted, before, current, %reason, "Wanted number of VMs changed.");
        }
        let made = shown.decision(now);
        self.keep(&mut shown, made);
    }

    /// Called after each round.
    pub fn acted(&self, now: Timestamp, acted: Acted) {
        let mut shown = self.shown.lock();
        let dry_run = shown.info.dry_run;
        let before = std::mem::replace(&mut shown.info.state, acted.state);
        if before != acted.state {
            tracing::info!(state = %acted.state, "Autoscaler changed its state.");
        }
        self.metrics.leading.set(i64::from(acted.state == AutoscalerState::Leading));
        let (kind, problem) = match acted.problem {
            Some((kind, text)) => (Some(kind), Some(text)),
            None => (None, None),
        };
        if let Some(kind) = kind {
            self.metrics.problems.with_label_values(&[kind]).inc();
        }
        if let Some(problem) =
            problem.as_ref().filter(|new| shown.info.problem.as_ref() != Some(*new))
        {
            tracing::warn!(%problem, "Autoscaler cannot act; retrying. Calls are not affected.");
        }
        let unchanged = shown.info.problem == problem
            && (acted.steps.is_empty() || dry_run && shown.last_steps() == Some(&acted.steps));
        shown.info.problem.clone_from(&problem);
        if unchanged || (acted.steps.is_empty() && problem.is_none()) {
            return;
        }
        for step in &acted.steps {
            tracing::info!(step, dry_run, "Autoscaler step done.");
        }
        let Acted { wanted, reason, steps, .. } = acted;
        let made = AutoscalerDecision { wanted, reason, steps, problem, ..shown.decision(now) };
        self.keep(&mut shown, made);
    }

    fn keep(&self, shown: &mut Shown, decision: AutoscalerDecision) {
        if shown.decisions.len() == self.keep {
            shown.decisions.pop_front();
        }
        shown.decisions.push_back(decision);
    }
}

impl Shown {
    fn decision(&self, at: Timestamp) -> AutoscalerDecision {
        let AutoscalerInfo { wanted, current, reason, .. } = &self.info;
        AutoscalerDecision {
            at,
            wanted: *wanted,
            current: *current,
            reason: reason.clone(),
            steps: Vec::new(),
            problem: None,
        }
    }

    fn last_steps(&self) -> Option<&Vec<String>> {
        self.decisions.iter().rev().map(|made| &made.steps).find(|steps| !steps.is_empty())
    }
}

/// Rounds to tenths, for people.
fn round(places: f64) -> f64 {
    (places * 10.0).round() / 10.0
}

#[derive(Debug)]
struct Metrics {
    wanted: IntGauge,
    current: IntGauge,
    ready: IntGauge,
    demand: Gauge,
    places: Gauge,
    leading: IntGauge,
    reason: IntGaugeVec,
    problems: IntCounterVec,
}

/// Kinds of problems: those of the driver, and an unavailable store.
const PROBLEMS: [&str; 6] = ["throttled", "denied", "unknown", "refused", "silent", "store"];

impl Metrics {
    /// `acts`: without a driver no gateway leads, so the metric `leading` is left out.
    fn new(registry: &Registry, acts: bool) -> Result<Self, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(format!("epsilon_autoscaler_{name}"), help);
        let count = |name, help| IntGauge::with_opts(opts(name, help));
        let places = |name, help| Gauge::with_opts(opts(name, help));
        let reason = opts("reason", "1 for the current reason of the wanted number of VMs.");
        let problems = opts("problems_total", "Rounds that ended with a problem, by its kind.");
        let metrics = Self {
            wanted: count("wanted_vms", "VMs that the policy wants.")?,
            current: count("current_vms", "VMs that the group has or is about to have.")?,
            ready: count("ready_vms", "VMs of the group that take calls.")?,
            demand: places("demand_places", "Places needed, the mean of the stable window.")?,
            places: places("places", "Places of the VMs that take calls.")?,
            leading: count("leading", "1 on the gateway whose autoscaler acts.")?,
            reason: IntGaugeVec::new(reason, &["reason"])?,
            problems: IntCounterVec::new(problems, &["kind"])?,
        };
        for kind in PROBLEMS {
            metrics.problems.with_label_values(&[kind]);
        }
        registry.register(Box::new(metrics.wanted.clone()))?;
        registry.register(Box::new(metrics.current.clone()))?;
        registry.register(Box::new(metrics.ready.clone()))?;
        registry.register(Box::new(metrics.demand.clone()))?;
        registry.register(Box::new(metrics.places.clone()))?;
        registry.register(Box::new(metrics.reason.clone()))?;
        registry.register(Box::new(metrics.problems.clone()))?;
        if acts {
            registry.register(Box::new(metrics.leading.clone()))?;
        }
        Ok(metrics)
    }

    fn decided(&self, decision: &Decision, sample: &Sample) {
        self.wanted.set(i64::from(decision.wanted));
        self.current.set(i64::from(sample.current));
        self.ready.set(i64::from(sample.ready));
        self.demand.set(decision.demand);
        self.places.set(sample.places);
        for word in Reason::LABELS {
            self.reason.with_label_values(&[word]).set(i64::from(word == decision.reason.label()));
        }
    }
}
