//! The value of a pool's idle instances when another version needs their memory. `vm.rs` compares
//! pools and chooses; `keepalive/cost.rs` has the formula.

use super::{Key, Pool, state::Uses};
use crate::keepalive::cost::{self, EvictionClock, Rate};
use crate::moment::Moment;
use std::sync::Arc;

/// Value of the pool's instances; only used by evictions and a timer.
#[derive(Debug, Default)]
pub(super) struct EvictionValue {
    rate: Rate,
    /// The eviction clock at the last use.
    clock: f64,
}

/// An idle instance that may be evicted for another version.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Evictable {
    pub(crate) key: Key,
    pub(crate) since: Moment,
    /// The lowest priority is evicted first.
    pub(crate) priority: f64,
}

impl Pool {
    /// Records the calls since the last time; returns the rate. Called before an eviction, so that
    /// calls are weighed by the clock of their time, and on a timer, so that the rate is up to
    /// date.
    pub(crate) fn note_uses(&self, clock: EvictionClock) -> f64 {
        let Uses { calls, instances } = self.locked.lock().state.take_uses();
        let now = self.context.now();
        let mut value = self.value.lock();
        if calls + instances > 0 {
            value.rate.add(calls, now);
            value.clock = clock.now();
        }
        value.rate.at(now)
    }

    /// Idle instances that may be evicted for another version, and the value of each.
    pub(crate) fn evictable(&self, clock: EvictionClock) -> Vec<Evictable> {
        let rate = self.note_uses(clock);
        let start = self.history.start_cost();
        let memory = self.version.spec.memory.get();
        let used_at = self.value.lock().clock;
        let locked = self.locked.lock();
        let idle = locked.state.idle();
        let spare = locked.state.spare();
        let busy = locked.state.live().saturating_sub(idle.len() as u32);
        drop(locked);
        ranked(idle, busy, spare, |rank| used_at + cost::value(rate, start, memory, rank))
    }

    /// Stops an instance to free its memory for another version, if it is still idle.
    pub(crate) fn evict(self: &Arc<Self>, key: Key) -> bool {
        let now = self.context.now();
        let mut locked = self.locked.lock();
        let Some(actions) = locked.state.evict(key, now) else { return false };
        self.carry_out(locked, actions, now);
        true
    }
}

/// Ranks idle instances, which come idle longest first: the one used last is worth most, after
/// those that are busy. Only `spare` of them, those idle longest, may be evicted.
fn ranked(
    mut idle: Vec<(Moment, Key)>,
    busy: u32,
    spare: u32,
    priority: impl Fn(u32) -> f64,
) -> Vec<Evictable> {
    let all = busy + idle.len() as u32;
    idle.truncate(spare as usize);
    let ranks = (0..all).map(|longer_idle| all - longer_idle);
    idle.into_iter()
        .zip(ranks)
        .map(|((since, key), rank)| Evictable { key, since, priority: priority(rank) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn idle_longest_is_worth_least_after_busy_ones() {
        let at = Duration::from_secs;
        let idle = vec![(at(1), 7), (at(5), 3), (at(9), 4)];
        let found = ranked(idle, 2, 2, |rank| f64::from(10 - rank));
        let expected = [
            Evictable { key: 7, since: at(1), priority: 5.0 },
            Evictable { key: 3, since: at(5), priority: 6.0 },
        ];
        assert_eq!(found, expected, "two busy ones first, one is not spare");
    }
}
