//! The ready cells by kind, and the demand for each. Guarded by one short lock of
//! [`Cells`](super::Cells); decides, and does nothing itself: what it returns is dropped or used
//! after the lock is released.

use super::Cell;
use super::compatibility::Kind;
use super::demand::{Demand, Range, shares};
use crate::moment::Moment;
use epsilon_api::{function::ImageRef, ids::InstanceId, vm::CellCount};
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

/// Pause after a boot that failed; doubled up to [`LONGEST_PAUSE`]. The usual causes last: an
/// engine that is down, a base that cannot be pulled.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// No boot within this time after the begin of a start.
pub(crate) const QUIET: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub(crate) struct Pool {
    kinds: HashMap<Kind, KindPool>,
    booting: u32,
    /// When the last start began.
    last_start: Option<Moment>,
    /// No boot before this moment, and the length of the pause.
    boot_backoff: Option<(Moment, Duration)>,
}

#[derive(Debug, Default)]
struct KindPool {
    /// The one that booted last is at the end, and is taken first: its data is still in the CPU's
    /// caches.
    ready: VecDeque<Cell>,
    demand: Demand,
}

/// What to change so that the right cells are ready.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Too many of their kind, the oldest first. To be dropped.
    pub(crate) surplus: Vec<Cell>,
    /// The kind to boot next.
    pub(crate) next: Option<Kind>,
}

impl Pool {
    pub(crate) fn started(&mut self, kind: &Kind, now: Moment) {
        self.last_start = Some(now);
        match self.kinds.get_mut(kind) {
            Some(kind_pool) => kind_pool.demand.started(now),
            None => self.kinds.entry(kind.clone()).or_default().demand.started(now),
        }
    }

    /// Whether no start has just begun: a start in a ready cell takes less than [`QUIET`], and no
    /// boot slows it down.
    pub(crate) fn is_quiet(&self, now: Moment) -> bool {
        self.last_start.is_none_or(|then| now.saturating_sub(then) >= QUIET)
    }

    /// `min_left`: how many ready cells have to stay.
    pub(crate) fn take(&mut self, kind: &Kind, min_left: usize) -> Option<Cell> {
        let ready = &mut self.kinds.get_mut(kind)?.ready;
        if ready.len() > min_left { ready.pop_back() } else { None }
    }

    pub(crate) fn has(&self, kind: &Kind) -> bool {
        self.kinds.get(kind).is_some_and(|kind_pool| !kind_pool.ready.is_empty())
    }

    pub(crate) fn put(&mut self, cell: Cell) {
        self.kinds.entry(cell.kind.clone()).or_default().ready.push_back(cell);
    }

    pub(crate) fn remove(&mut self, id: &InstanceId) -> Option<Cell> {
        self.kinds.values_mut().find_map(|kind_pool| {
            let at = kind_pool.ready.iter().position(|cell| cell.resources.id == *id)?;
            kind_pool.ready.remove(at)
        })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.kinds
            .iter()
            .map(|(kind, kind_pool)| kind.memory.get() * kind_pool.ready.len() as u64)
            .sum()
    }

    /// Takes ready cells of at least `bytes` of memory, from the kinds that have most of them.
    pub(crate) fn release(&mut self, bytes: u64) -> Vec<Cell> {
        let mut leaving = Vec::new();
        let mut freed = 0;
        while freed < bytes {
            let richest = self.kinds.values_mut().max_by_key(|kind_pool| kind_pool.ready.len());
            let Some(cell) = richest.and_then(|kind_pool| kind_pool.ready.pop_front()) else {
                break;
            };
            freed += cell.kind.memory.get();
            leaving.push(cell);
        }
        leaving
    }

    pub(crate) fn count(&self) -> CellCount {
        let ready = self.kinds.values().map(|kind_pool| kind_pool.ready.len() as u32).sum();
        CellCount { ready, booting: self.booting }
    }

    pub(crate) fn count_boot(&mut self, more: bool) {
        self.booting = if more { self.booting + 1 } else { self.booting.saturating_sub(1) };
    }

    /// Records the result of a boot for the pool; sets the pause after a failure.
    pub(crate) fn note_boot(&mut self, worked: bool, now: Moment) {
        let before = self.boot_backoff.take().map(|(_, pause)| pause);
        if !worked {
            let pause = before.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LONGEST_PAUSE));
            self.boot_backoff = Some((now + pause, pause));
        }
    }

    /// `base`: the newest one, whose usual kind has the minimum of cells.
    pub(crate) fn plan(&mut self, base: Option<&ImageRef>, range: Range, now: Moment) -> Plan {
        let usual = base.map(|base| Kind::usual(base.clone()));
        if let Some(usual) = &usual
            && !self.kinds.contains_key(usual)
        {
            self.kinds.insert(usual.clone(), KindPool::default());
        }
        self.kinds.retain(|kind, kind_pool| {
            Some(kind) == usual.as_ref()
                || !kind_pool.ready.is_empty()
                || !kind_pool.demand.is_over(now)
        });
        // The usual kind first: the others share what is left.
        let mut kinds: Vec<(&Kind, &mut KindPool)> = self.kinds.iter_mut().collect();
        kinds.sort_by_key(|(kind, _)| (Some(*kind) != usual.as_ref(), kind.to_string()));
        let targets = kinds.iter_mut().map(|(kind, kind_pool)| {
            let min = if Some(*kind) == usual.as_ref() { range.min } else { 0 };
            kind_pool.demand.target(now, Range { min, max: range.max })
        });
        let shares = shares(&targets.collect::<Vec<_>>(), range.max);
        let mut plan = Plan::default();
        for ((kind, kind_pool), share) in kinds.into_iter().zip(shares) {
            let too_many = kind_pool.ready.len().saturating_sub(share as usize);
            plan.surplus.extend(kind_pool.ready.drain(..too_many));
            if plan.next.is_none() && kind_pool.ready.len() < share as usize {
                plan.next = Some(kind.clone());
            }
        }
        if self.boot_backoff.is_some_and(|(until, _)| now < until) {
            plan.next = None;
        }
        plan
    }
}
