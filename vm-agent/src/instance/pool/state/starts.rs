//! Which instances a pool starts, and which calls a failed or missing start leaves without a slot.

use super::{PoolState, entry::Entry};
use crate::container::failure::StartFailure;
use crate::instance::pool::{
    Key,
    actions::{Actions, BadEnd, NoSlot},
};
use crate::instance::state::{Event, State, StopReason};
use crate::moment::Moment;
use epsilon_api::vm::StartPhases;

/// How far an explicit request for an instance is.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::instance::pool) enum Readiness {
    Ready,
    Pending,
    Failed(StartFailure),
}

impl<W> PoolState<W> {
    /// The instance's start succeeded.
    pub(in crate::instance::pool) fn ready(
        &mut self,
        key: Key,
        phases: StartPhases,
        now: Moment,
    ) -> Actions<W> {
        let mut actions = Actions::default();
        self.failures.note_success();
        self.uses.instances += 1;
        self.step(key, Event::Healthy, now, &mut actions);
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.ready_at = Some(now);
        }
        self.dispatch(now, Some((key, phases)), &mut actions);
        actions
    }

    /// The instance's start failed. Also returns whether the failure differs from the one before.
    pub(in crate::instance::pool) fn start_failed(
        &mut self,
        key: Key,
        failure: &StartFailure,
        now: Moment,
    ) -> (Actions<W>, bool) {
        let mut actions = Actions::default();
        let is_new = self.failures.last() != Some(failure);
        self.step(key, Event::Kill(StopReason::NeverReady), now, &mut actions);
        if matches!(failure, StartFailure::Init(_)) {
            actions.bad_end = Some(BadEnd { is_early: true });
        }
        if *failure != StartFailure::Cancelled {
            self.failures.note(failure, now);
            if self.live() + self.starting() == 0 {
                self.refuse_all(failure, &mut actions);
            }
        }
        self.dispatch(now, None, &mut actions);
        (actions, is_new)
    }

    /// Whether the instance's start waits for memory. Calls that may not wait do not wait for that.
    pub(in crate::instance::pool) fn report_memory_wait(
        &mut self,
        key: Key,
        waits_for_memory: bool,
        now: Moment,
    ) -> Actions<W> {
        let mut actions = Actions::default();
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.waits_for_memory = waits_for_memory;
            self.dispatch(now, None, &mut actions);
        }
        actions
    }

    /// Prewarms an instance for an expected call, if there is none and no failure forbids it.
    pub(in crate::instance::pool) fn start_prewarm(
        &mut self,
        until: Moment,
        now: Moment,
    ) -> Actions<W> {
        let mut actions = Actions::default();
        let is_pausing = self.failures.is_background_pausing(now) || self.failures.last().is_some();
        let is_empty = self.entries.is_empty() && self.waiters.is_empty();
        if is_empty && !is_pausing && !self.closing && !self.is_ended {
            self.start(Some(until), &mut actions);
        }
        actions
    }

    /// An explicit request for an instance begins: the version is to be served. Returns the number
    /// of failures before it.
    pub(in crate::instance::pool) fn request_ready(&mut self, is_draining: bool) -> u64 {
        self.wanted = true;
        self.closing = is_draining;
        self.ready_requests += 1;
        self.failures.forget();
        self.failures.count()
    }

    pub(in crate::instance::pool) fn end_ready_request(&mut self) {
        self.ready_requests = self.ready_requests.saturating_sub(1);
    }

    /// Whether there are as many instances as a version has that is to be served. `seen`: failures
    /// before the request began.
    pub(in crate::instance::pool) fn readiness(&self, seen: u64) -> Readiness {
        let want = self.rules.min_instances.clamp(1, self.rules.max_instances.max(1));
        if self.live() >= want {
            return Readiness::Ready;
        }
        if self.closing || self.is_ended {
            return Readiness::Failed(StartFailure::Cancelled);
        }
        // A start failed since this request began, and no other one is in progress.
        if self.failures.count() != seen && self.starting() == 0 {
            let failure = self.failures.last().cloned();
            return Readiness::Failed(failure.unwrap_or(StartFailure::Cancelled));
        }
        Readiness::Pending
    }

    /// Whether a start in progress still has a call to serve, or a minimum to reach.
    pub(in crate::instance::pool) fn is_start_needed(&self) -> bool {
        let others = self.starting().saturating_sub(1);
        self.waiters.len() > others as usize * self.rules.concurrency
            || self.live() + others < self.min_live()
            || self.entries.values().any(|entry| entry.is_prewarming() && !entry.waits_for_memory)
    }

    /// Whether the start in progress is only a prewarm.
    pub(in crate::instance::pool) fn is_prewarm_only(&self) -> bool {
        self.waiters.is_empty()
            && self.live() >= self.min_live()
            && self.entries.values().any(Entry::is_prewarming)
    }

    pub(super) fn starting(&self) -> u32 {
        self.entries.values().filter(|entry| entry.is_starting()).count() as u32
    }

    /// Starts what the waiting calls and the minimum need and the limits allow. It is needed if
    /// more calls wait than the starts in progress will have slots for, or if fewer instances exist
    /// than the minimum. During a pause after a failure, waiting calls still start one if the
    /// version has no instance.
    pub(super) fn start_needed(&mut self, now: Moment, actions: &mut Actions<W>) {
        while self.needs_start(now) {
            self.start(None, actions);
        }
    }

    fn needs_start(&self, now: Moment) -> bool {
        let starting = self.starting();
        let count = starting + self.live();
        if self.is_ended
            || count >= self.rules.max_instances
            || starting as usize >= self.rules.starts_at_once
        {
            return false;
        }
        let calls_wait = self.waiters.len() > starting as usize * self.rules.concurrency;
        let may_start_for_calls = count == 0 || !self.failures.is_pausing(now);
        let is_below_min = count < self.min_live();
        (calls_wait && may_start_for_calls)
            || (is_below_min && !self.failures.is_background_pausing(now))
    }

    /// Adds one starting instance.
    fn start(&mut self, prewarmed_until: Option<Moment>, actions: &mut Actions<W>) {
        let key = self.next_number();
        self.entries.insert(key, Entry { prewarmed_until, ..Entry::new(State::Starting) });
        actions.starts.push(key);
    }

    /// Refuses calls that may not wait and that no start in progress would serve.
    pub(super) fn refuse_calls_that_may_not_wait(&mut self, actions: &mut Actions<W>) {
        if self.waiters.iter().all(|waiter| waiter.may_wait) {
            return;
        }
        // Calls at the head of the queue get the slots of the starts that have their memory.
        let starting = self.entries.values().filter(|entry| entry.is_starting());
        let (short, begins): (Vec<_>, Vec<_>) = starting.partition(|entry| entry.waits_for_memory);
        let slots = begins.len() * self.rules.concurrency;
        let is_memory_short = !short.is_empty();
        let mut position = 0;
        for waiter in std::mem::take(&mut self.waiters) {
            if waiter.may_wait || position < slots {
                position += 1;
                self.waiters.push_back(waiter);
            } else if is_memory_short {
                let text = "all memory for instances is in use".to_owned();
                let failure = StartFailure::NoCapacity(text);
                actions.failures.push((waiter.to, NoSlot::Start(failure)));
            } else {
                actions.failures.push((waiter.to, NoSlot::Busy));
            }
        }
    }

    /// No instance will serve the waiting calls.
    pub(super) fn refuse_all(&mut self, failure: &StartFailure, actions: &mut Actions<W>) {
        for waiter in self.waiters.drain(..) {
            actions.failures.push((waiter.to, NoSlot::Start(failure.clone())));
        }
    }
}
