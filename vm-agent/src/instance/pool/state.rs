//! The state of a pool, under its lock: instances, waiting calls, remembered failures. Each
//! change returns its side effects as [`Actions`]; nothing here carries them out. Used only by
//! `pool.rs`.

use super::{Key, NoSlot, Pool, Reply};
use crate::instance::Instance;
use crate::instance::start::failure::StartFailure;
use crate::instance::state::{Effect, Event, Moment, State, StopReason};
use crate::keepalive::policy;
use epsilon_api::{
    ids::{InstanceId, RequestId},
    vm::StartPhases,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

/// How long the first failure of a version's code is remembered; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Pause of a version with live instances after a start that this VM had no capacity for.
const NO_CAPACITY_PAUSE: Duration = Duration::from_millis(500);
/// An instance that ends by itself within this time of being ready counts like one that never was
/// ready.
const EARLY_CRASH: Duration = Duration::from_secs(10);
/// Calls after which a start was worth its cost.
const MIN_SERVED: u64 = 10;

#[derive(Default)]
pub(super) struct PoolState {
    pub(super) entries: BTreeMap<Key, Entry>,
    /// Live instances with a free slot; the one used last is at the end.
    pub(super) available: Vec<Key>,
    pub(super) waiters: VecDeque<Waiter>,
    pub(super) next: u64,
    /// The version is to be served: `minInstances` holds.
    pub(super) wanted: bool,
    /// Number of calls that hold a slot.
    pub(super) running: u32,
    /// Uses since `note_uses` last read them.
    pub(super) uses: Uses,
    /// Number of `ensure_ready` requests that wait for at least one instance.
    pub(super) ready_waiters: u32,
    /// Idle instances stop at once: the version was retired, or the VM drains.
    pub(super) closing: bool,
    pub(super) failure: Option<RememberedFailure>,
    /// Back-off after instances that ended soon after they were ready: no start that no call waits
    /// for before this moment, and the length of the pause.
    pub(super) crash_backoff: Option<(Moment, Duration)>,
    pub(super) no_start_before: Option<Moment>,
    pub(super) failures: u64,
}

/// Uses that raise the value of the pool's instances.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Uses {
    pub(super) calls: u64,
    pub(super) instances: u64,
}

/// A prewarmed instance: started before any call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prewarm {
    /// When it stops if no call uses it.
    pub(super) until: Moment,
}

pub(super) struct Entry {
    pub(super) instance: Arc<Instance>,
    pub(super) state: State,
    pub(super) calls: Vec<(u64, RequestId)>,
    /// Number of calls that it served to their end.
    pub(super) served: u64,
    /// When it became ready; unknown for an adopted instance.
    pub(super) ready_at: Option<Moment>,
    /// Its start waits for memory.
    pub(super) waits_for_memory: bool,
    /// Set while it is prewarmed and no call has used it.
    pub(super) prewarm: Option<Prewarm>,
}

impl Entry {
    pub(super) fn new(instance: Arc<Instance>, state: State) -> Self {
        Self {
            instance,
            state,
            calls: Vec::new(),
            served: 0,
            ready_at: None,
            waits_for_memory: false,
            prewarm: None,
        }
    }

    /// Whether its end counts as early. One that served calls does not count: a rare fault, or a
    /// caller who triggers it, must not slow down a function that others use.
    pub(super) fn is_early(&self) -> bool {
        self.served < MIN_SERVED
    }

    /// Whether it is a prewarm in progress.
    pub(super) fn is_prewarming(&self) -> bool {
        self.prewarm.is_some() && self.state == State::Starting
    }
}

pub(super) struct Waiter {
    pub(super) ticket: u64,
    pub(super) request_id: RequestId,
    /// No other VM can take it.
    pub(super) may_wait: bool,
    pub(super) to: Reply,
}

pub(super) struct RememberedFailure {
    pub(super) failure: StartFailure,
    pub(super) until: Moment,
    pub(super) pause: Duration,
}

/// Side effects of a change, carried out without the lock.
#[derive(Default)]
pub(super) struct Actions {
    pub(super) slots: Vec<(Reply, Slot, Option<StartPhases>)>,
    pub(super) failures: Vec<(Reply, NoSlot)>,
    pub(super) starts: Vec<(Key, Arc<Instance>)>,
    pub(super) stops: Vec<Arc<Instance>>,
    pub(super) changed: Vec<Arc<Instance>>,
}

pub(super) struct Slot {
    pub(super) key: Key,
    pub(super) call: u64,
    pub(super) instance: Arc<Instance>,
}

impl Actions {
    pub(super) fn append(&mut self, mut other: Self) {
        self.slots.append(&mut other.slots);
        self.failures.append(&mut other.failures);
        self.starts.append(&mut other.starts);
        self.stops.append(&mut other.stops);
        self.changed.append(&mut other.changed);
    }
}

impl PoolState {
    pub(super) fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn position(&self, ticket: u64) -> Option<usize> {
        self.waiters.iter().position(|waiter| waiter.ticket == ticket)
    }

    pub(super) fn live(&self) -> u32 {
        self.entries.values().filter(|entry| entry.state.is_live()).count() as u32
    }

    pub(super) fn starting(&self) -> u32 {
        self.entries.values().filter(|entry| entry.state == State::Starting).count() as u32
    }

    /// Instances below which none is reaped or evicted.
    pub(super) fn min_live(&self, pool: &Pool) -> u32 {
        let spec = &pool.version.spec;
        let requested = if self.ready_waiters > 0 { 1 } else { 0 };
        let min = if self.wanted { spec.min_instances } else { 0 };
        // A closing pool needs none: it would start at once what it stops.
        if self.closing { 0 } else { min.max(requested).min(spec.max_instances.get()) }
    }

    /// Whether the pool is empty, and no expected call and no remembered failure needs it.
    pub(super) fn is_removable(&self, pool: &Pool, now: Moment) -> bool {
        let remembers = self.failure.as_ref().is_some_and(|remembered| now < remembered.until);
        let empty = self.entries.is_empty() && self.waiters.is_empty();
        let expects = || !self.closing && pool.expected().is_some_and(|(_, until)| now < until);
        empty && !self.wanted && self.ready_waiters == 0 && !remembers && !expects()
    }

    pub(super) fn remembered(&self, now: Moment) -> Option<&StartFailure> {
        let remembered = self.failure.as_ref()?;
        let counts = matches!(remembered.failure, StartFailure::Init(_)) && now < remembered.until;
        (counts && self.live() + self.starting() == 0).then_some(&remembered.failure)
    }

    pub(super) fn remember(&mut self, failure: &StartFailure, now: Moment) {
        self.failures += 1;
        let before = self.failure.take().map(|remembered| (remembered.until, remembered.pause));
        let pause = match failure {
            StartFailure::Init(_) => next_pause(before, now),
            StartFailure::NoCapacity(_) | StartFailure::Cancelled => NO_CAPACITY_PAUSE,
        };
        self.no_start_before = Some(now + pause);
        self.failure =
            Some(RememberedFailure { failure: failure.clone(), until: now + pause, pause });
    }

    /// A ready instance ended by itself.
    pub(super) fn crashed(&mut self, key: Key, now: Moment) {
        let ready_at = self.entries.get(&key).and_then(|entry| entry.ready_at);
        if ready_at.is_some_and(|then| now < then + EARLY_CRASH) {
            // After a good while, earlier crashes count no more.
            let before = self.crash_backoff.filter(|(until, _)| now < *until + LONGEST_PAUSE);
            let pause = next_pause(before, now);
            self.crash_backoff = Some((now + pause, pause));
        }
    }

    /// Begins a call in the instance used last among those with a free slot.
    pub(super) fn begin(&mut self, pool: &Pool, request_id: &RequestId) -> Option<Slot> {
        while let Some(&key) = self.available.last() {
            let call = self.next_number();
            let is_first = self.running == 0;
            let entry = self.entries.get_mut(&key)?;
            match entry.state.step(Event::CallBegan, Moment::ZERO, &pool.policy) {
                Ok((state, _)) => {
                    entry.state = state;
                    entry.calls.push((call, request_id.clone()));
                    if entry.calls.len() >= pool.concurrency() {
                        self.available.pop();
                    }
                    if entry.prewarm.take().is_some() {
                        pool.context.metrics.prewarms_used.inc();
                    }
                    entry.instance.thaw();
                    self.uses.calls += 1;
                    self.running += 1;
                    if is_first {
                        pool.history.call_began(pool.context.now());
                    }
                    return Some(Slot { key, call, instance: Arc::clone(&entry.instance) });
                }
                Err(illegal) => {
                    tracing::error!(%illegal, instance = %entry.instance.id(), "A bug in the pool.");
                    self.available.pop();
                }
            }
        }
        None
    }

    pub(super) fn event(&mut self, pool: &Pool, key: Key, event: Event, now: Moment) -> Actions {
        let mut actions = Actions::default();
        let Some(entry) = self.entries.get_mut(&key) else { return actions };
        let before = entry.state;
        match before.step(event, now, &pool.policy) {
            Ok((state, effect)) => {
                entry.state = state;
                if is_bad_end(state) && !is_bad_end(before) {
                    pool.history.ended_badly(now, entry.is_early());
                }
                let drains = |state| matches!(state, State::Draining { .. });
                match effect {
                    Effect::Kill => actions.stops.push(Arc::clone(&entry.instance)),
                    Effect::Nothing if drains(state) && !drains(before) => {
                        actions.changed.push(Arc::clone(&entry.instance));
                    }
                    Effect::Nothing => {}
                }
            }
            Err(illegal) => {
                tracing::error!(%illegal, instance = %entry.instance.id(), "A bug in the pool.");
            }
        }
        self.update_available(key, pool.concurrency());
        actions
    }

    /// Restores the invariant of `available`: exactly the live instances with a free slot.
    pub(super) fn update_available(&mut self, key: Key, concurrency: usize) {
        let free = self
            .entries
            .get(&key)
            .is_some_and(|entry| entry.state.is_live() && entry.calls.len() < concurrency);
        match (self.available.iter().position(|other| *other == key), free) {
            (None, true) => self.available.push(key),
            (Some(at), false) => drop(self.available.remove(at)),
            (None, false) | (Some(_), true) => {}
        }
    }

    /// Serves waiting calls, starts the instances that they need, and stops idle ones if the pool
    /// closes. Order matters: only calls that no free slot could serve count for starts, and only
    /// starts that were just begun count for those that may not wait. `fresh`: the instance that
    /// just became ready, whose call gets the phases of its start.
    pub(super) fn dispatch(
        &mut self,
        pool: &Pool,
        now: Moment,
        fresh: Option<(Key, StartPhases)>,
    ) -> Actions {
        let mut actions = Actions::default();
        // Free slots first, to the calls at the head of the queue.
        while let Some(waiter) = self.waiters.front() {
            if waiter.to.is_closed() {
                self.waiters.pop_front();
                continue;
            }
            let request_id = waiter.request_id.clone();
            let Some(slot) = self.begin(pool, &request_id) else { break };
            let started = fresh.filter(|(key, _)| *key == slot.key).map(|(_, phases)| phases);
            if let Some(waiter) = self.waiters.pop_front() {
                actions.slots.push((waiter.to, slot, started));
            }
        }
        // Then instances, for the calls that are left.
        while self.needs_start(pool, now) {
            if !self.start(pool, None, &mut actions) {
                break;
            }
        }
        self.refuse_non_waiting(pool, &mut actions);
        // At last, a closing pool stops the instances without calls: no waiting call needs one.
        if self.closing && self.waiters.is_empty() {
            let keys: Vec<Key> = self
                .entries
                .iter()
                .filter(|(_, entry)| matches!(entry.state, State::Starting | State::Idle { .. }))
                .map(|(key, _)| *key)
                .collect();
            for key in keys {
                actions.append(self.event(pool, key, Event::Stop(StopReason::Requested), now));
            }
        }
        actions
    }

    /// Adds one starting instance. Returns whether it did.
    fn start(&mut self, pool: &Pool, prewarm: Option<Prewarm>, actions: &mut Actions) -> bool {
        let id = InstanceId::random();
        let idle = pool.context.config.connection_idle;
        match Instance::new(id, Arc::clone(&pool.version), idle, &pool.context.closed) {
            Ok(instance) => {
                let key = self.next_number();
                let instance = Arc::new(instance);
                let entry = Entry::new(Arc::clone(&instance), State::Starting);
                self.entries.insert(key, Entry { prewarm, ..entry });
                actions.starts.push((key, instance));
                true
            }
            Err(err) => {
                tracing::error!(%err, "The function's name does not form a container name; no instance is started.");
                false
            }
        }
    }

    /// Prewarms an instance for an expected call, if there is none and no failure forbids it.
    pub(super) fn start_prewarm(&mut self, pool: &Pool, now: Moment, until: Moment) -> Actions {
        let mut actions = Actions::default();
        let is_pausing = self.no_start_before.is_some_and(|then| now < then)
            || self.crash_backoff.is_some_and(|(until, _)| now < until)
            || self.failure.is_some();
        let idle = self.entries.is_empty() && self.waiters.is_empty();
        if idle && !is_pausing && !self.closing && !pool.context.closed.is_cancelled() {
            self.start(pool, Some(Prewarm { until }), &mut actions);
        }
        actions
    }

    /// Accounts for calls that ended, however they ended.
    pub(super) fn calls_ended(&mut self, pool: &Pool, calls: usize, now: Moment) {
        if calls > 0 {
            self.running = self.running.saturating_sub(u32::try_from(calls).unwrap_or(u32::MAX));
            if self.running == 0 {
                pool.history.calls_ended(now);
            }
        }
    }

    /// The idle timeout of this instance. Pauses between calls say nothing about concurrent calls:
    /// only the last instance stays as long as the history suggests, those beside it as long as the
    /// operator's default.
    pub(super) fn idle(&self, pool: &Pool, key: Key) -> Duration {
        let entry = self.entries.get(&key);
        if let Some(Entry { prewarm: Some(prewarm), state: State::Idle { since }, .. }) = entry {
            return prewarm.until.saturating_sub(*since);
        }
        let (choice, _) = pool.choice();
        let is_last = self.live() <= 1;
        let is_set = choice.why == policy::Reason::Set;
        if is_last || is_set { choice.idle } else { pool.context.config.keep.default }
    }

    /// Refuses calls that may not wait and that no start in progress would serve.
    fn refuse_non_waiting(&mut self, pool: &Pool, actions: &mut Actions) {
        if self.waiters.iter().all(|waiter| waiter.may_wait) {
            return;
        }
        // Calls at the head of the queue get the slots of the starts that have their memory.
        let starting = self.entries.values().filter(|entry| entry.state == State::Starting);
        let (short, begins): (Vec<_>, Vec<_>) = starting.partition(|entry| entry.waits_for_memory);
        let slots = begins.len() * pool.concurrency();
        let waits_for_memory = !short.is_empty();
        let mut position = 0;
        for waiter in std::mem::take(&mut self.waiters) {
            if waiter.may_wait || position < slots {
                position += 1;
                self.waiters.push_back(waiter);
            } else if waits_for_memory {
                let text = "all memory for instances is in use".to_owned();
                actions.failures.push((waiter.to, NoSlot::Start(StartFailure::NoCapacity(text))));
            } else {
                actions.failures.push((waiter.to, NoSlot::Busy));
            }
        }
    }

    /// Whether one more start is needed and allowed. It is needed if more calls wait than the
    /// starts in progress will have slots for, or if fewer instances exist than the minimum. During
    /// a pause after a failure, waiting calls still start one if the version has no instance.
    pub(super) fn needs_start(&self, pool: &Pool, now: Moment) -> bool {
        let starting = self.starting();
        let live = self.live();
        if pool.context.closed.is_cancelled()
            || starting + live >= pool.version.spec.max_instances.get()
            || starting as usize >= pool.context.config.starts_per_version
        {
            return false;
        }
        let is_pausing = self.no_start_before.is_some_and(|then| now < then);
        let calls_wait = self.waiters.len() > starting as usize * pool.concurrency();
        (calls_wait && !(is_pausing && starting + live > 0))
            || (starting + live < self.min_live(pool)
                && !is_pausing
                && self.crash_backoff.is_none_or(|(until, _)| now >= until))
    }
}

/// Whether the instance ends because of its own code, as far as its state shows.
fn is_bad_end(state: State) -> bool {
    match state {
        State::Stopping { why } | State::Gone { why } => match why {
            StopReason::TimedOut => true,
            // For crashes the exit status decides, for failed starts the failure: the machine may
            // be the cause.
            StopReason::Crashed | StopReason::NeverReady => false,
            StopReason::IdleTooLong
            | StopReason::OneCall
            | StopReason::Evicted
            | StopReason::Requested => false,
        },
        State::Starting | State::Idle { .. } | State::Busy { .. } | State::Draining { .. } => false,
    }
}

/// The next pause. Failures during the current pause (a burst of starts) count once.
fn next_pause(before: Option<(Moment, Duration)>, now: Moment) -> Duration {
    match before {
        Some((until, pause)) if now < until => pause,
        Some((_, pause)) => (pause * 2).min(LONGEST_PAUSE),
        None => FIRST_PAUSE,
    }
}
