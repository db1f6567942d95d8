//! The state of a pool: instances, calls that run or wait, remembered failures. A plain state
//! machine: no clock, no I/O, no lock, no engine. Each change is given the time and returns what
//! follows from it as [`Actions`]; `pool.rs` holds the lock and carries them out.
//!
//! An instance is known by its [`Key`]; `W` is how a waiting call is answered, which only
//! `pool.rs` knows. Here: calls in instances, and the end of instances. Waiting calls are in
//! `queue.rs`, starts in `starts.rs`, timers in `timers.rs`, remembered failures in `failures.rs`.

mod entry;
mod failures;
mod queue;
mod starts;
#[cfg(test)]
mod tests;
mod timers;
mod views;

use super::Key;
use super::actions::{Actions, BadEnd, Slot};
use super::rules::Rules;
use crate::container::failure::StartFailure;
use crate::instance::state::{Effect, Event, State, StopReason};
use crate::moment::Moment;
use entry::Entry;
use epsilon_api::{ids::RequestId, vm::StartPhases};
use failures::Failures;
pub(super) use queue::Refusal;
use queue::Waiter;
pub(super) use starts::Readiness;
use std::collections::{BTreeMap, VecDeque};
pub(super) use timers::{Check, Freeze, Freezer};

pub(super) struct PoolState<W> {
    rules: Rules,
    entries: BTreeMap<Key, Entry>,
    /// Live instances with a free slot; the one used last is at the end.
    available: Vec<Key>,
    waiters: VecDeque<Waiter<W>>,
    /// The last number that was given to an instance, a call or a waiting call.
    last_number: u64,
    /// Number of calls that hold a slot.
    running: u32,
    /// The version is to be served: `minInstances` holds.
    wanted: bool,
    /// Number of explicit requests that wait for at least one instance.
    ready_requests: u32,
    /// Idle instances stop at once: the version was retired, or the VM drains.
    closing: bool,
    /// The agent ends: nothing starts any more.
    is_ended: bool,
    failures: Failures,
    uses: Uses,
}

/// Uses that raise the value of the pool's instances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Uses {
    pub(super) calls: u64,
    pub(super) instances: u64,
}

impl<W> PoolState<W> {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            entries: BTreeMap::new(),
            available: Vec::new(),
            waiters: VecDeque::new(),
            last_number: 0,
            running: 0,
            wanted: false,
            ready_requests: 0,
            closing: false,
            is_ended: false,
            failures: Failures::default(),
            uses: Uses::default(),
        }
    }

    /// Begins a call in the instance used last among those with a free slot.
    pub(super) fn begin(&mut self, request_id: &RequestId) -> Option<Slot> {
        while let Some(&key) = self.available.last() {
            let call = self.next_number();
            let entry = self.entries.get_mut(&key)?;
            match entry.state.step(Event::CallBegan, Moment::ZERO, &self.rules.policy) {
                Ok((state, _)) => {
                    entry.state = state;
                    entry.calls.push((call, request_id.clone()));
                    if entry.calls.len() >= self.rules.concurrency {
                        self.available.pop();
                    }
                    let was_prewarmed = entry.prewarmed_until.take().is_some();
                    let is_first = self.running == 0;
                    self.uses.calls += 1;
                    self.running += 1;
                    return Some(Slot { key, call, is_first, was_prewarmed });
                }
                Err(illegal) => {
                    tracing::error!(%illegal, key, "Illegal change of an instance's state (a bug); the instance is left out.");
                    self.available.pop();
                }
            }
        }
        None
    }

    /// One call ended; its slot is free again, or its instance has to stop.
    pub(super) fn end(&mut self, key: Key, call: u64, how: Event, now: Moment) -> Actions<W> {
        let mut actions = Actions::default();
        let Some(entry) = self.entries.get_mut(&key) else { return actions };
        let Some(at) = entry.calls.iter().position(|(number, _)| *number == call) else {
            return actions;
        };
        entry.calls.swap_remove(at);
        if how == Event::CallEnded && entry.state.is_live() {
            entry.served += 1;
        }
        self.note_calls_ended(1, &mut actions);
        self.step(key, how, now, &mut actions);
        if !self.waiters.is_empty() || self.closing || !actions.stops.is_empty() {
            self.dispatch(now, None, &mut actions);
        }
        actions
    }

    /// An event of an instance that does not end one call.
    pub(super) fn event(&mut self, key: Key, event: Event, now: Moment) -> Actions<W> {
        let mut actions = Actions::default();
        self.step(key, event, now, &mut actions);
        self.dispatch(now, None, &mut actions);
        actions
    }

    /// The container exited by itself; `is_known`: the engine knows the exit status. Also returns
    /// the calls that ran in it.
    pub(super) fn exited(
        &mut self,
        key: Key,
        is_known: bool,
        now: Moment,
    ) -> (Actions<W>, Vec<RequestId>) {
        let calls = self.calls(key);
        let entry = self.entries.get(&key);
        let bad_end = is_known.then(|| BadEnd { is_early: entry.is_some_and(Entry::is_early) });
        if let Some(ready_at) = entry.and_then(|entry| entry.ready_at) {
            self.failures.note_crash(ready_at, now);
        }
        let mut actions = self.event(key, Event::Exited, now);
        actions.bad_end = bad_end.or(actions.bad_end);
        (actions, calls)
    }

    /// The container is removed.
    pub(super) fn gone(&mut self, key: Key, now: Moment) -> Actions<W> {
        let mut actions = Actions::default();
        if let Some(entry) = self.entries.remove(&key) {
            self.note_calls_ended(entry.calls.len(), &mut actions);
        }
        self.available.retain(|other| *other != key);
        self.dispatch(now, None, &mut actions);
        actions
    }

    /// Starts what the minimum and the waiting calls need.
    pub(super) fn start_what_is_needed(&mut self, now: Moment) -> Actions<W> {
        let mut actions = Actions::default();
        self.dispatch(now, None, &mut actions);
        actions
    }

    /// Stops every instance once it has no call. `wanted`: the pool may be opened again.
    pub(super) fn close(&mut self, wanted: bool, now: Moment) -> Actions<W> {
        self.closing = true;
        self.wanted &= wanted;
        self.start_what_is_needed(now)
    }

    /// Reverts [`PoolState::close`].
    pub(super) fn open(&mut self, now: Moment) -> Actions<W> {
        self.closing = false;
        self.start_what_is_needed(now)
    }

    /// The agent ends: kills all instances, with or without calls, and starts none any more.
    pub(super) fn kill_all(&mut self, now: Moment) -> Actions<W> {
        let mut actions = Actions::default();
        self.is_ended = true;
        self.refuse_all(&StartFailure::Cancelled, &mut actions);
        let keys: Vec<Key> = self.entries.keys().copied().collect();
        for key in keys {
            self.step(key, Event::Kill(StopReason::Requested), now, &mut actions);
        }
        actions
    }

    /// Adds an instance that was found running.
    pub(super) fn adopt(&mut self, now: Moment) -> Key {
        let key = self.next_number();
        self.entries.insert(key, Entry::new(State::Idle { since: now }));
        self.uses.instances += 1;
        self.update_available(key);
        key
    }

    /// Stops an instance to free its memory, if it is still idle.
    pub(super) fn evict(&mut self, key: Key, now: Moment) -> Option<Actions<W>> {
        let entry = self.entries.get(&key)?;
        if !matches!(entry.state, State::Idle { .. }) {
            return None;
        }
        let mut actions = Actions::default();
        self.step(key, Event::Stop(StopReason::Evicted), now, &mut actions);
        Some(actions)
    }

    /// Serves waiting calls, starts the instances that they need, and stops idle ones if the pool
    /// closes. Order matters: only calls that no free slot could serve count for starts, and only
    /// starts that were just begun count for those that may not wait. `fresh`: the instance that
    /// just became ready, whose call gets the phases of its start.
    fn dispatch(
        &mut self,
        now: Moment,
        fresh: Option<(Key, StartPhases)>,
        actions: &mut Actions<W>,
    ) {
        // Free slots first, to the calls at the head of the queue.
        while let Some(waiter) = self.waiters.pop_front() {
            let Some(slot) = self.begin(&waiter.request_id) else {
                self.waiters.push_front(waiter);
                break;
            };
            let started = fresh.filter(|(key, _)| *key == slot.key).map(|(_, phases)| phases);
            actions.slots.push((waiter.to, slot, started));
        }
        // Then instances, for the calls that are left.
        self.start_needed(now, actions);
        self.refuse_calls_that_may_not_wait(actions);
        // At last, a closing pool stops the instances without calls: no waiting call needs one.
        if self.closing && self.waiters.is_empty() {
            let unused =
                |entry: &Entry| matches!(entry.state, State::Starting | State::Idle { .. });
            let keys: Vec<Key> = self
                .entries
                .iter()
                .filter(|(_, entry)| unused(entry))
                .map(|(key, _)| *key)
                .collect();
            for key in keys {
                self.step(key, Event::Stop(StopReason::Requested), now, actions);
            }
        }
    }

    /// Applies one event to one instance.
    fn step(&mut self, key: Key, event: Event, now: Moment, actions: &mut Actions<W>) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let before = entry.state;
        match before.step(event, now, &self.rules.policy) {
            Ok((state, effect)) => {
                entry.state = state;
                if state.has_timed_out() && !before.has_timed_out() {
                    actions.bad_end = Some(BadEnd { is_early: entry.is_early() });
                }
                let drains = |state| matches!(state, State::Draining { .. });
                match effect {
                    Effect::Stop => actions.stops.push(key),
                    Effect::Nothing if drains(state) && !drains(before) => {
                        actions.changed.push(key);
                    }
                    Effect::Nothing => {}
                }
            }
            Err(illegal) => {
                tracing::error!(%illegal, key, "Illegal change of an instance's state (a bug); the event is ignored.");
            }
        }
        self.update_available(key);
    }

    /// Restores the invariant of `available`: exactly the live instances with a free slot.
    fn update_available(&mut self, key: Key) {
        let has_free_slot = self.entries.get(&key).is_some_and(|entry| {
            entry.state.is_live() && entry.calls.len() < self.rules.concurrency
        });
        match (self.available.iter().position(|other| *other == key), has_free_slot) {
            (None, true) => self.available.push(key),
            (Some(at), false) => drop(self.available.remove(at)),
            (None, false) | (Some(_), true) => {}
        }
    }

    fn note_calls_ended(&mut self, calls: usize, actions: &mut Actions<W>) {
        if calls > 0 {
            self.running = self.running.saturating_sub(u32::try_from(calls).unwrap_or(u32::MAX));
            actions.has_last_call_ended = self.running == 0;
        }
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}
