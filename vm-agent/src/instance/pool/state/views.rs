//! What can be read of a pool's state. Changes nothing.

use super::{PoolState, Uses};
use crate::instance::pool::Key;
use crate::instance::state::{State, StopReason};
use crate::moment::Moment;
use epsilon_api::ids::RequestId;

impl<W> PoolState<W> {
    /// Instances that serve calls.
    pub(in crate::instance::pool) fn live(&self) -> u32 {
        self.entries.values().filter(|entry| entry.state.is_live()).count() as u32
    }

    /// Instances below which none is reaped or evicted.
    pub(in crate::instance::pool) fn min_live(&self) -> u32 {
        let requested = if self.ready_requests > 0 { 1 } else { 0 };
        let min = if self.wanted { self.rules.min_instances } else { 0 };
        // A closing pool needs none: it would start at once what it stops.
        if self.closing { 0 } else { min.max(requested).min(self.rules.max_instances) }
    }

    /// Live instances that may be evicted.
    pub(in crate::instance::pool) fn spare(&self) -> u32 {
        self.live().saturating_sub(self.min_live())
    }

    /// Idle instances and since when they are, the one idle longest first.
    pub(in crate::instance::pool) fn idle(&self) -> Vec<(Moment, Key)> {
        let mut idle: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(key, entry)| match entry.state {
                State::Idle { since } => Some((since, *key)),
                State::Starting
                | State::Busy { .. }
                | State::Draining { .. }
                | State::Stopping { .. }
                | State::Gone { .. } => None,
            })
            .collect();
        idle.sort_unstable();
        idle
    }

    /// The state of each instance.
    pub(in crate::instance::pool) fn states(&self) -> impl Iterator<Item = (Key, State)> {
        self.entries.iter().map(|(key, entry)| (*key, entry.state))
    }

    /// Why the instance is stopping; [`StopReason::Crashed`]: a call found it dead.
    pub(in crate::instance::pool) fn why_stopping(&self, key: Key) -> Option<StopReason> {
        match self.entries.get(&key)?.state {
            State::Stopping { why } | State::Gone { why } => Some(why),
            State::Starting | State::Idle { .. } | State::Busy { .. } | State::Draining { .. } => {
                None
            }
        }
    }

    /// Calls that hold a slot in the instance.
    pub(in crate::instance::pool) fn calls(&self, key: Key) -> Vec<RequestId> {
        let calls = self.entries.get(&key).into_iter().flat_map(|entry| &entry.calls);
        calls.map(|(_, request_id)| request_id.clone()).collect()
    }

    /// Number of calls that hold a slot.
    pub(in crate::instance::pool) fn running(&self) -> u32 {
        self.running
    }

    /// Number of calls that wait for a slot.
    pub(in crate::instance::pool) fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// Whether nothing in it is worth keeping: no instance, no call, no request, no failure.
    pub(in crate::instance::pool) fn is_unused(&self, now: Moment) -> bool {
        let is_empty = self.entries.is_empty() && self.waiters.is_empty();
        let is_wanted = self.wanted || self.ready_requests > 0;
        is_empty && !is_wanted && !self.failures.is_remembered(now)
    }

    pub(in crate::instance::pool) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Uses since the last time.
    pub(in crate::instance::pool) fn take_uses(&mut self) -> Uses {
        std::mem::take(&mut self.uses)
    }
}
