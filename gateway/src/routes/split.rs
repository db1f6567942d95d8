//! One split in memory: its versions, ready to be called, and the version of each slot. Built when
//! the split is set or read from the store; read by every call of the function without a lock.

use super::error_window::{AbortSwitch, ErrorWindow};
use crate::observe::metrics::{FunctionMetrics, Metrics};
use crate::routes::Route;
use epsilon_api::{
    function::Version,
    traffic::{Aborted, slots::COUNT},
};
use epsilon_placement::hash;
use epsilon_store::Traffic;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::Notify;

/// A function's split.
#[derive(Debug)]
pub(crate) struct Split {
    /// The stored split.
    pub(crate) terms: Arc<Traffic>,
    /// The versions, the stable one first.
    targets: Vec<Target>,
    /// Index into `targets` for each slot.
    slots: [u8; COUNT],
    abort_switch: AbortSwitch,
    /// Number of calls without a slot of their own.
    turn: AtomicU64,
}

/// One version of a split.
#[derive(Debug)]
pub(crate) struct Target {
    /// The route for calls that the split sends here; they are counted.
    pub(crate) route: Arc<Route>,
    /// The route for calls that name this version; they do not count for the split.
    pub(crate) plain: Arc<Route>,
    /// Its share of the calls in percent.
    pub(crate) percent: u8,
    /// Its error window.
    pub(crate) error_window: Arc<ErrorWindow>,
}

impl Split {
    /// A split with this stable version. `notify` is notified when a version fails too often.
    pub(crate) fn new(
        stable: &Arc<Version>,
        terms: Traffic,
        counted: &Arc<FunctionMetrics>,
        metrics: &Metrics,
        notify: &Arc<Notify>,
    ) -> Self {
        let abort_switch = AbortSwitch::new(notify);
        let shares = terms.split.slots.shares();
        let candidates = terms.candidates.iter().map(|version| Arc::new(version.clone()));
        let versions = [Arc::clone(stable)].into_iter().chain(candidates);
        let arm = |version: Arc<Version>| {
            let share = shares.iter().find(|share| share.version == version.number);
            let percent = share.map_or(0, |share| share.percent);
            let series = metrics.traffic.version(&version.id());
            series.set_share(percent);
            let judged = (version.number != stable.number).then(|| abort_switch.clone());
            let error_window = ErrorWindow::new(version.number, terms.split.abort, judged, series);
            let error_window = Arc::new(error_window);
            let plain = Route::of(version, Arc::clone(counted));
            let route = Arc::new(plain.with_error_window(Arc::clone(&error_window)));
            Target { route, plain: Arc::new(plain), percent, error_window }
        };
        let targets: Vec<_> = versions.map(arm).collect();
        let mut slots = [0; COUNT];
        for (slot, version) in slots.iter_mut().zip(terms.split.slots.iter()) {
            let arm = targets.iter().position(|arm| arm.route.version.number == version);
            // A version that is missing leaves its slots to the stable one; there are few targets.
            *slot = arm.unwrap_or(0) as u8;
        }
        Self { terms: Arc::new(terms), targets, slots, abort_switch, turn: AtomicU64::new(0) }
    }

    /// The version of a slot; the stable one once another has failed too often.
    pub(crate) fn at(&self, slot: usize) -> &Arc<Route> {
        let arm =
            if self.abort_switch.is_tripped() { 0 } else { usize::from(self.slots[slot % COUNT]) };
        &self.targets[arm].route
    }

    /// A slot for a caller that has none of its own. These are spread evenly: of any hundred in a
    /// row, each version gets its share, give or take two calls.
    pub(crate) fn draw(&self) -> u64 {
        hash::spread(self.turn.fetch_add(1, Ordering::Relaxed))
    }

    /// The versions, the stable one first.
    pub(crate) fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Why the split has to end, if it has to.
    pub(crate) fn breach(&self) -> Option<&Aborted> {
        self.targets.iter().find_map(|arm| arm.error_window.breach())
    }
}
