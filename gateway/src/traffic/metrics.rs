//! `epsilon_traffic_*`: metrics of versions in splits. A version has series only while it is in a
//! split or one of its calls runs, so there are never more than a few per function.

use epsilon_api::ids::VersionId;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

/// The metric families of splits.
#[derive(Debug)]
pub(crate) struct TrafficMetrics {
    calls: IntCounterVec,
    share: IntGaugeVec,
    /// Number of splits that this gateway ended.
    pub(crate) aborted: IntCounter,
    known: Mutex<HashMap<VersionId, Weak<VersionMetrics>>>,
}

impl TrafficMetrics {
    pub(crate) fn new(registry: &Registry) -> Result<Arc<Self>, prometheus::Error> {
        let calls = Opts::new(
            "epsilon_traffic_calls_total",
            "Calls of a version in a split that ended, by how: failed is a status of 500 or above.",
        );
        let share = Opts::new(
            "epsilon_traffic_share_percent",
            "Share of a function's calls that a version in a split gets.",
        );
        let metrics = Self {
            calls: IntCounterVec::new(calls, &["function", "version", "outcome"])?,
            share: IntGaugeVec::new(share, &["function", "version"])?,
            aborted: IntCounter::new(
                "epsilon_splits_aborted_total",
                "Splits that this gateway ended because a version failed too often.",
            )?,
            known: Mutex::default(),
        };
        registry.register(Box::new(metrics.calls.clone()))?;
        registry.register(Box::new(metrics.share.clone()))?;
        registry.register(Box::new(metrics.aborted.clone()))?;
        Ok(Arc::new(metrics))
    }

    /// The series of this version; shared by its users.
    pub(crate) fn version(self: &Arc<Self>, id: &VersionId) -> Arc<VersionMetrics> {
        let mut known = self.known.lock();
        if let Some(alive) = known.get(id).and_then(Weak::upgrade) {
            return alive;
        }
        let labels = [id.function.as_str(), &id.number.to_string()];
        let calls = |outcome| self.calls.with_label_values(&[labels[0], labels[1], outcome]);
        let made = Arc::new(VersionMetrics {
            id: id.clone(),
            ok: calls("ok"),
            failed: calls("failed"),
            share: self.share.with_label_values(&labels),
            all: Arc::clone(self),
        });
        known.insert(id.clone(), Arc::downgrade(&made));
        made
    }
}

/// The series of one version; removed when this is dropped.
#[derive(Debug)]
pub(crate) struct VersionMetrics {
    id: VersionId,
    ok: IntCounter,
    failed: IntCounter,
    share: IntGauge,
    all: Arc<TrafficMetrics>,
}

impl VersionMetrics {
    pub(crate) fn ended(&self, failed: bool) {
        if failed { self.failed.inc() } else { self.ok.inc() }
    }

    pub(crate) fn set_share(&self, percent: u8) {
        self.share.set(i64::from(percent));
    }
}

impl Drop for VersionMetrics {
    fn drop(&mut self) {
        let mut known = self.all.known.lock();
        // If the version has a new owner by now, the series belong to it and must stay.
        let ours = std::ptr::from_ref(self);
        if known.get(&self.id).is_none_or(|owner| owner.as_ptr() != ours) {
            return;
        }
        known.remove(&self.id);
        let function = self.id.function.as_str();
        let number = self.id.number.to_string();
        let _ = self.all.share.remove_label_values(&[function, &number]);
        for outcome in ["ok", "failed"] {
            let _ = self.all.calls.remove_label_values(&[function, &number, outcome]);
        }
    }
}
