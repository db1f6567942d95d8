//! The state of a pool, kept under its lock: instances, waiting calls, remembered failures. Each
//! change returns its side effects as [`Todo`]; nothing here carries them out. Used only by
//! `pool.rs`.

use super::{Key, NoPlace, Pool, Reply};
use crate::instance::Instance;
use crate::instance::start::failure::StartFailure;
use crate::instance::state::{Effect, Event, Moment, State, Why};
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

/// How long the first failure of a version's code is remembered; doubled up to [`REMEMBER_MAX`].
const REMEMBER: Duration = Duration::from_secs(1);
const REMEMBER_MAX: Duration = Duration::from_secs(30);
/// Pause of a version with live instances after a start that this VM had no capacity for.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(500);
/// An instance that ends by itself within this time of being ready counts like one that never was
/// ready.
const YOUNG: Duration = Duration::from_secs(10);
/// Calls after which a start was worth its cost.
const MIN_SERVED: u64 = 10;

#[derive(Default)]
pub(super) struct Books {
    pub(super) slots: BTreeMap<Key, Slot>,
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
    pub(super) askers: u32,
    /// Idle instances stop at once: the version was retired, or the VM drains.
    pub(super) closing: bool,
    pub(super) failure: Option<Remembered>,
    /// Back-off after instances that ended soon after they were ready: no start that no call waits
    /// for before this moment, and the length of the pause.
    pub(super) brittle: Option<(Moment, Duration)>,
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
pub(super) struct Guess {
    /// When it stops if no call uses it.
    pub(super) until: Moment,
}

pub(super) struct Slot {
    pub(super) instance: Arc<Instance>,
    pub(super) state: State,
    pub(super) calls: Vec<(u64, RequestId)>,
    /// Number of calls that it served to their end.
    pub(super) served: u64,
    /// When it became ready; unknown for an adopted instance.
    pub(super) ready_at: Option<Moment>,
    /// Its start waits for memory.
    pub(super) is_short: bool,
    /// Set while it is prewarmed and no call has used it.
    pub(super) guess: Option<Guess>,
}

impl Slot {
    pub(super) fn new(instance: Arc<Instance>, state: State) -> Self {
        Self {
            instance,
            state,
            calls: Vec::new(),
            served: 0,
            ready_at: None,
            is_short: false,
            guess: None,
        }
    }

    /// Whether its end counts as early. One that served calls does not count: a rare fault, or a
    /// caller who triggers it, must not slow down a function that others use.
    pub(super) fn is_early(&self) -> bool {
        self.served < MIN_SERVED
    }

    /// Whether it is a prewarm in progress.
    pub(super) fn is_starting_ahead(&self) -> bool {
        self.guess.is_some() && self.state == State::Starting
    }
}

pub(super) struct Waiter {
    pub(super) ticket: u64,
    pub(super) request_id: RequestId,
    /// No other VM can take it.
    pub(super) may_wait: bool,
    pub(super) to: Reply,
}

pub(super) struct Remembered {
    pub(super) failure: StartFailure,
    pub(super) until: Moment,
    pub(super) pause: Duration,
}

/// Side effects of a change, carried out without the lock.
#[derive(Default)]
pub(super) struct Todo {
    pub(super) places: Vec<(Reply, Place, Option<StartPhases>)>,
    pub(super) failures: Vec<(Reply, NoPlace)>,
    pub(super) starts: Vec<(Key, Arc<Instance>)>,
    pub(super) stops: Vec<Arc<Instance>>,
    pub(super) changed: Vec<Arc<Instance>>,
}

pub(super) struct Place {
    pub(super) key: Key,
    pub(super) call: u64,
    pub(super) instance: Arc<Instance>,
}

impl Todo {
    pub(super) fn append(&mut self, mut other: Self) {
        self.places.append(&mut other.places);
        self.failures.append(&mut other.failures);
        self.starts.append(&mut other.starts);
        self.stops.append(&mut other.stops);
        self.changed.append(&mut other.changed);
    }
}

impl Books {
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn position(&self, ticket: u64) -> Option<usize> {
        self.waiters.iter().position(|waiter| waiter.ticket == ticket)
    }

    pub(super) fn live(&self) -> u32 {
        self.slots.values().filter(|slot| slot.state.is_live()).count() as u32
    }

    pub(super) fn starting(&self) -> u32 {
        self.slots.values().filter(|slot| slot.state == State::Starting).count() as u32
    }

    /// Instances below which none is reaped or evicted.
    pub(super) fn floor(&self, pool: &Pool) -> u32 {
        let spec = &pool.version.spec;
        let asked = if self.askers > 0 { 1 } else { 0 };
        let min = if self.wanted { spec.min_instances } else { 0 };
        // A closing pool needs none: it would start at once what it stops.
        if self.closing { 0 } else { min.max(asked).min(spec.max_instances.get()) }
    }

    /// Whether the pool is empty, and no expected call and no remembered failure needs it.
    pub(super) fn is_forgotten(&self, pool: &Pool, now: Moment) -> bool {
        let remembers = self.failure.as_ref().is_some_and(|kept| now < kept.until);
        let empty = self.slots.is_empty() && self.waiters.is_empty();
        let expects = || !self.closing && pool.expected().is_some_and(|(_, until)| now < until);
        empty && !self.wanted && self.askers == 0 && !remembers && !expects()
    }

    pub(super) fn remembered(&self, now: Moment) -> Option<&StartFailure> {
        let kept = self.failure.as_ref()?;
        let counts = matches!(kept.failure, StartFailure::Init(_)) && now < kept.until;
        (counts && self.live() + self.starting() == 0).then_some(&kept.failure)
    }

    pub(super) fn remember(&mut self, failure: &StartFailure, now: Moment) {
        self.failures += 1;
        let before = self.failure.take().map(|kept| (kept.until, kept.pause));
        let pause = match failure {
            StartFailure::Init(_) => longer(before, now),
            StartFailure::NoCapacity(_) | StartFailure::CalledOff => NO_ROOM_PAUSE,
        };
        self.no_start_before = Some(now + pause);
        self.failure = Some(Remembered { failure: failure.clone(), until: now + pause, pause });
    }

    /// A ready instance ended by itself.
    pub(super) fn crashed(&mut self, key: Key, now: Moment) {
        let ready_at = self.slots.get(&key).and_then(|slot| slot.ready_at);
        if ready_at.is_some_and(|then| now < then + YOUNG) {
            // After a good while, earlier crashes count no more.
            let before = self.brittle.filter(|(until, _)| now < *until + REMEMBER_MAX);
            let pause = longer(before, now);
            self.brittle = Some((now + pause, pause));
        }
    }

    /// Begins a call in the instance used last among those with a free slot.
    pub(super) fn begin(&mut self, pool: &Pool, request_id: &RequestId) -> Option<Place> {
        while let Some(&key) = self.available.last() {
            let call = self.number();
            let is_first = self.running == 0;
            let slot = self.slots.get_mut(&key)?;
            match slot.state.step(Event::CallBegan, Moment::ZERO, &pool.policy) {
                Ok((state, _)) => {
                    slot.state = state;
                    slot.calls.push((call, request_id.clone()));
                    if slot.calls.len() >= pool.concurrency() {
                        self.available.pop();
                    }
                    if slot.guess.take().is_some() {
                        pool.vm.metrics.prewarms_used.inc();
                    }
                    slot.instance.thaw();
                    self.uses.calls += 1;
                    self.running += 1;
                    if is_first {
                        pool.history.begins(pool.vm.now());
                    }
                    return Some(Place { key, call, instance: Arc::clone(&slot.instance) });
                }
                Err(illegal) => {
                    tracing::error!(%illegal, instance = %slot.instance.id(), "A bug in the pool.");
                    self.available.pop();
                }
            }
        }
        None
    }

    pub(super) fn event(&mut self, pool: &Pool, key: Key, event: Event, now: Moment) -> Todo {
        let mut todo = Todo::default();
        let Some(slot) = self.slots.get_mut(&key) else { return todo };
        let before = slot.state;
        match before.step(event, now, &pool.policy) {
            Ok((state, effect)) => {
                slot.state = state;
                if is_bad_end(state) && !is_bad_end(before) {
                    pool.history.ended_badly(now, slot.is_early());
                }
                let drains = |state| matches!(state, State::Draining { .. });
                match effect {
                    Effect::Kill => todo.stops.push(Arc::clone(&slot.instance)),
                    Effect::Nothing if drains(state) && !drains(before) => {
                        todo.changed.push(Arc::clone(&slot.instance));
                    }
                    Effect::Nothing => {}
                }
            }
            Err(illegal) => {
                tracing::error!(%illegal, instance = %slot.instance.id(), "A bug in the pool.");
            }
        }
        self.refresh(key, pool.concurrency());
        todo
    }

    /// Restores the invariant of `available`: exactly the live instances with a free slot.
    pub(super) fn refresh(&mut self, key: Key, concurrency: usize) {
        let free = self
            .slots
            .get(&key)
            .is_some_and(|slot| slot.state.is_live() && slot.calls.len() < concurrency);
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
    ) -> Todo {
        let mut todo = Todo::default();
        // Free slots first, to the calls at the head of the queue.
        while let Some(waiter) = self.waiters.front() {
            if waiter.to.is_closed() {
                self.waiters.pop_front();
                continue;
            }
            let request_id = waiter.request_id.clone();
            let Some(place) = self.begin(pool, &request_id) else { break };
            let started = fresh.filter(|(key, _)| *key == place.key).map(|(_, phases)| phases);
            if let Some(waiter) = self.waiters.pop_front() {
                todo.places.push((waiter.to, place, started));
            }
        }
        // Then instances, for the calls that are left.
        while self.wants_start(pool, now) {
            if !self.start(pool, None, &mut todo) {
                break;
            }
        }
        self.refuse_hurried(pool, &mut todo);
        // At last, a closing pool stops the instances without calls: no waiting call needs one.
        if self.closing && self.waiters.is_empty() {
            let keys: Vec<Key> = self
                .slots
                .iter()
                .filter(|(_, slot)| matches!(slot.state, State::Starting | State::Idle { .. }))
                .map(|(key, _)| *key)
                .collect();
            for key in keys {
                todo.append(self.event(pool, key, Event::Stop(Why::Asked), now));
            }
        }
        todo
    }

    /// Adds one starting instance. Returns whether it did.
    fn start(&mut self, pool: &Pool, guess: Option<Guess>, todo: &mut Todo) -> bool {
        let id = InstanceId::random();
        let idle = pool.vm.config.connection_idle;
        match Instance::new(id, Arc::clone(&pool.version), idle, &pool.vm.closed) {
            Ok(instance) => {
                let key = self.number();
                let instance = Arc::new(instance);
                let slot = Slot::new(Arc::clone(&instance), State::Starting);
                self.slots.insert(key, Slot { guess, ..slot });
                todo.starts.push((key, instance));
                true
            }
            Err(err) => {
                tracing::error!(%err, "The function's name does not form a container name; no instance is started.");
                false
            }
        }
    }

    /// Prewarms an instance for an expected call, if there is none and no failure forbids it.
    pub(super) fn start_ahead(&mut self, pool: &Pool, now: Moment, until: Moment) -> Todo {
        let mut todo = Todo::default();
        let resting = self.no_start_before.is_some_and(|then| now < then)
            || self.brittle.is_some_and(|(until, _)| now < until)
            || self.failure.is_some();
        let idle = self.slots.is_empty() && self.waiters.is_empty();
        if idle && !resting && !self.closing && !pool.vm.closed.is_cancelled() {
            self.start(pool, Some(Guess { until }), &mut todo);
        }
        todo
    }

    /// Accounts for calls that ended, however they ended.
    pub(super) fn rest(&mut self, pool: &Pool, calls: usize, now: Moment) {
        if calls > 0 {
            self.running = self.running.saturating_sub(u32::try_from(calls).unwrap_or(u32::MAX));
            if self.running == 0 {
                pool.history.rests(now);
            }
        }
    }

    /// The idle timeout of this instance. Pauses between calls say nothing about concurrent calls:
    /// only the last instance stays as long as the history suggests, those beside it as long as the
    /// operator's default.
    pub(super) fn idle(&self, pool: &Pool, key: Key) -> Duration {
        let slot = self.slots.get(&key);
        if let Some(Slot { guess: Some(guess), state: State::Idle { since }, .. }) = slot {
            return guess.until.saturating_sub(*since);
        }
        let (choice, _) = pool.choice();
        let is_last = self.live() <= 1;
        let is_set = choice.why == policy::Why::Set;
        if is_last || is_set { choice.idle } else { pool.vm.config.keep.default }
    }

    /// Refuses calls that may not wait and that no start in progress would serve.
    fn refuse_hurried(&mut self, pool: &Pool, todo: &mut Todo) {
        if self.waiters.iter().all(|waiter| waiter.may_wait) {
            return;
        }
        // Calls at the head of the queue get the slots of the starts that have their memory.
        let starting = self.slots.values().filter(|slot| slot.state == State::Starting);
        let (short, begins): (Vec<_>, Vec<_>) = starting.partition(|slot| slot.is_short);
        let places = begins.len() * pool.concurrency();
        let is_short = !short.is_empty();
        let mut position = 0;
        for waiter in std::mem::take(&mut self.waiters) {
            if waiter.may_wait || position < places {
                position += 1;
                self.waiters.push_back(waiter);
            } else if is_short {
                let text = "all memory for instances is in use".to_owned();
                todo.failures.push((waiter.to, NoPlace::Start(StartFailure::NoCapacity(text))));
            } else {
                todo.failures.push((waiter.to, NoPlace::Busy));
            }
        }
    }

    /// Whether one more start is needed and allowed. It is needed if more calls wait than the starts
    /// in progress will have slots for, or if fewer instances exist than the minimum. During a
    /// pause after a failure, waiting calls still start one if the version has no instance.
    pub(super) fn wants_start(&self, pool: &Pool, now: Moment) -> bool {
        let starting = self.starting();
        let live = self.live();
        if pool.vm.closed.is_cancelled()
            || starting + live >= pool.version.spec.max_instances.get()
            || starting as usize >= pool.vm.config.starts_per_version
        {
            return false;
        }
        let resting = self.no_start_before.is_some_and(|then| now < then);
        let calls_wait = self.waiters.len() > starting as usize * pool.concurrency();
        (calls_wait && !(resting && starting + live > 0))
            || (starting + live < self.floor(pool)
                && !resting
                && self.brittle.is_none_or(|(until, _)| now >= until))
    }
}

/// Whether the instance ends because of its own code, as far as its state shows.
fn is_bad_end(state: State) -> bool {
    match state {
        State::Stopping { why } | State::Gone { why } => match why {
            Why::TimedOut => true,
            // For crashes the exit status decides, for failed starts the failure: the machine may
            // be the cause.
            Why::Crashed | Why::NeverReady => false,
            Why::IdleTooLong | Why::OneCall | Why::Evicted | Why::Asked => false,
        },
        State::Starting | State::Idle { .. } | State::Busy { .. } | State::Draining { .. } => false,
    }
}

/// The next pause. Failures during the current pause (a burst of starts) count once.
fn longer(before: Option<(Moment, Duration)>, now: Moment) -> Duration {
    match before {
        Some((until, pause)) if now < until => pause,
        Some((_, pause)) => (pause * 2).min(REMEMBER_MAX),
        None => REMEMBER,
    }
}
