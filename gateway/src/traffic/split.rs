//! One split in memory: its versions, ready to be called, and which of them each slot belongs to. Made when the split is
//! set or heard of; read by every call of the function without a lock.

use super::tally::{Fuse, Tally};
use crate::{
    call::place::stable,
    observe::metrics::{FunctionMetrics, Metrics},
    routes::Route,
};
use epsilon_api::{
    function::Version,
    traffic::{Aborted, slots::COUNT},
};
use epsilon_store::Traffic;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::Notify;

/// See the module.
#[derive(Debug)]
pub(crate) struct Split {
    /// As it is kept.
    pub(crate) terms: Arc<Traffic>,
    /// The stable version first.
    arms: Vec<Arm>,
    /// Which arm each slot belongs to.
    slots: [u8; COUNT],
    fuse: Fuse,
    /// Calls that had no place of their own.
    turn: AtomicU64,
}

/// One version of a split.
#[derive(Debug)]
pub(crate) struct Arm {
    /// For calls that the split sends here: they are counted.
    pub(crate) route: Arc<Route>,
    /// For calls that ask for this version: they say nothing about the split.
    pub(crate) plain: Arc<Route>,
    /// Its share.
    pub(crate) percent: u8,
    /// Its calls.
    pub(crate) tally: Arc<Tally>,
}

impl Split {
    /// A split whose stable version is this one. `news` hears of a version that fails too often.
    pub(crate) fn new(
        stable: &Arc<Version>,
        terms: Traffic,
        counted: &Arc<FunctionMetrics>,
        metrics: &Metrics,
        news: &Arc<Notify>,
    ) -> Self {
        let fuse = Fuse::new(news);
        let shares = terms.split.slots.shares();
        let candidates = terms.candidates.iter().map(|version| Arc::new(version.clone()));
        let versions = [Arc::clone(stable)].into_iter().chain(candidates);
        let arm = |version: Arc<Version>| {
            let share = shares.iter().find(|share| share.version == version.number);
            let percent = share.map_or(0, |share| share.percent);
            let series = metrics.traffic.version(&version.id());
            series.set_share(percent);
            let judged = (version.number != stable.number).then(|| fuse.clone());
            let tally = Tally::new(version.number, terms.split.abort, judged, series);
            let tally = Arc::new(tally);
            let plain = Route::of(version, Arc::clone(counted));
            let route = Arc::new(plain.tallied(Arc::clone(&tally)));
            Arm { route, plain: Arc::new(plain), percent, tally }
        };
        let arms: Vec<_> = versions.map(arm).collect();
        let mut slots = [0; COUNT];
        for (slot, version) in slots.iter_mut().zip(terms.split.slots.iter()) {
            let arm = arms.iter().position(|arm| arm.route.version.number == version);
            // A version that is not there leaves its slots to the stable one; there are few arms.
            *slot = arm.unwrap_or(0) as u8;
        }
        Self { terms: Arc::new(terms), arms, slots, fuse, turn: AtomicU64::new(0) }
    }

    /// The version of a slot; the stable one, once another one has failed too often.
    pub(crate) fn at(&self, slot: usize) -> &Arc<Route> {
        let arm = if self.fuse.is_blown() { 0 } else { usize::from(self.slots[slot % COUNT]) };
        &self.arms[arm].route
    }

    /// A place among all callers for one that has none of its own. They spread evenly: of any hundred in a row, each
    /// version gets its share but for a call or two.
    pub(crate) fn draw(&self) -> u64 {
        stable::spread(self.turn.fetch_add(1, Ordering::Relaxed))
    }

    /// The versions, the stable one first.
    pub(crate) fn arms(&self) -> &[Arm] {
        &self.arms
    }

    /// What has to end it.
    pub(crate) fn breach(&self) -> Option<&Aborted> {
        self.arms.iter().find_map(|arm| arm.tally.breach())
    }
}
