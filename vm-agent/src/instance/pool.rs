//! The instances of one version, and the calls that wait for a slot in one. The agent's only shared
//! state on the path of a call: one short lock, never held across an await. State and decisions are
//! in `pool/books.rs`; what follows from a change (a hand-over, a start, a kill) is collected as
//! [`Todo`] there and carried out here after the lock is released.
//!
//! Rules, each under test in `tests/agent`:
//! - A free slot is given at once, in the instance used last. Else the call waits, first come first
//!   served, for the slot that frees first, of an existing instance or of a new one.
//! - No more starts than waiting calls need, and within `maxInstances` and the starts per version.
//! - A start that fails fails the waiting calls, once nothing else could serve them; a failure of
//!   the code is remembered for a time that doubles, so that broken code is not started for each
//!   call.

mod state;

use super::Instance;
use super::lease::{Lease, Placed};
use super::start::failure::StartFailure;
use super::state::{Event, Moment, Policy, State, Why};
use crate::keepalive::cost::{Clock, Rate};
use crate::keepalive::history::History;
use crate::keepalive::policy::Choice;
use crate::keepalive::{cost, policy};
use crate::vm::LocalVm;
use epsilon_api::{
    error::CallError,
    function::{Isolation, Version},
    ids::RequestId,
    vm::{InstanceStatus, Keep, StartPhases},
};
use http::HeaderValue;
use parking_lot::Mutex;
use state::{Books, Place, Slot, Todo, Uses, Waiter};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

/// Sends a waiting call its lease, or the reason why it gets none.
type Reply = oneshot::Sender<Result<Placed, NoPlace>>;

/// Why a waiting call gets no slot.
#[derive(Debug)]
pub(crate) enum NoPlace {
    /// The start that was to serve it failed.
    Start(StartFailure),
    /// It may not wait, and no start in progress would serve it.
    Busy,
}

/// Result of checking an instance's timers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// When to check again.
    pub(crate) at: Instant,
    /// It is to be frozen, and its freezer was not looked up yet.
    pub(crate) needs_freezer: bool,
}

/// State of the freeze timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freeze {
    /// Frozen already, stopping, or not allowed to be frozen.
    Never,
    /// At this moment at the earliest, if no call begins.
    At(Moment),
    NeedsFreezer,
}

/// An instance's key in its pool; never reused.
pub(crate) type Key = u64;

/// Shortest pause between two checks of an instance's timers.
const SHORTEST_LOOK: Duration = Duration::from_millis(10);
/// Longest pause: an instance without timers is checked all the same, in case its state changes.
const LONGEST_LOOK: Duration = Duration::from_secs(3600);

pub(crate) struct Pool {
    pub(crate) version: Arc<Version>,
    /// Value of every call's deadline header at hand-over: the whole timeout.
    pub(crate) deadline_ms: HeaderValue,
    pub(crate) vm: Arc<LocalVm>,
    policy: Policy,
    /// How long an instance is idle before its processes are frozen; `None`: never.
    freeze_after: Option<Duration>,
    /// The function's history, of all its versions.
    history: Arc<History>,
    books: Mutex<Books>,
    worth: Mutex<Worth>,
    /// Signals that an instance became ready, failed or was removed, or that a call began to wait.
    pulse: watch::Sender<()>,
}

/// Value of its instances for the eviction order; only used by evictions and a timer.
#[derive(Debug, Default)]
struct Worth {
    rate: Rate,
    /// The eviction clock at the last use.
    clock: f64,
}

/// An idle instance that may be evicted for another version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Idle {
    pub(crate) key: Key,
    pub(crate) since: Moment,
    /// The lowest priority is evicted first.
    pub(crate) priority: f64,
}

/// What a call gets from its pool.
pub(crate) enum Taken {
    Now(Lease),
    Later(Waiting),
}

/// A call in the queue. Dropping it leaves the queue.
pub(crate) struct Waiting {
    pool: Arc<Pool>,
    ticket: u64,
    pub(crate) place: oneshot::Receiver<Result<Placed, NoPlace>>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut books = self.pool.books.lock();
        if let Some(at) = books.position(self.ticket) {
            books.waiters.remove(at);
        }
        // A lease that was sent meanwhile frees its slot when the channel is dropped, after this.
    }
}

impl Waiting {
    /// Whether a start in progress is going to serve this call.
    pub(crate) fn is_start_coming(&self) -> bool {
        let books = self.pool.books.lock();
        let places = books.starting() as usize * self.pool.concurrency();
        books.position(self.ticket).is_some_and(|at| at < places)
    }
}

impl Pool {
    pub(crate) fn new(vm: Arc<LocalVm>, version: Arc<Version>) -> Arc<Self> {
        let spec = &version.spec;
        let policy = Policy { timeout: spec.timeout, one_call: spec.isolation == Isolation::Call };
        let freeze_after = match spec.idle {
            epsilon_api::function::Idle::Freeze => vm.config.freeze_after,
            epsilon_api::function::Idle::Run => None,
        };
        let history = vm.histories.of(&version.function);
        let deadline_ms =
            HeaderValue::from(u64::try_from(spec.timeout.as_millis()).unwrap_or(u64::MAX));
        Arc::new(Self {
            version,
            deadline_ms,
            vm,
            policy,
            freeze_after,
            history,
            books: Mutex::default(),
            worth: Mutex::default(),
            pulse: watch::Sender::new(()),
        })
    }

    /// A line of the agent's own log about one of its instances.
    pub(crate) fn warn(&self, instance: &Instance, what: &'static str, cause: Option<&str>) {
        self.history.warnings.tell(instance, what, cause);
    }

    fn concurrency(&self) -> usize {
        if self.policy.one_call { 1 } else { self.version.spec.concurrency.get() as usize }
    }

    /// Most slots that the version may have; part of the error for a call that got none.
    pub(crate) fn limit(&self) -> u32 {
        let concurrency = u32::try_from(self.concurrency()).unwrap_or(u32::MAX);
        self.version.spec.max_instances.get().saturating_mul(concurrency)
    }

    /// A slot for one call: now, or as soon as one is free. A call that may not wait gets a slot of
    /// a start in progress, or none.
    pub(crate) fn take(
        self: &Arc<Self>,
        request_id: &RequestId,
        may_wait: bool,
    ) -> Result<Taken, CallError> {
        let mut books = self.books.lock();
        if let Some(place) = books.begin(self, request_id) {
            drop(books);
            return Ok(Taken::Now(self.lease(place)));
        }
        let now = self.vm.now();
        // The function's pause ends here, not when the start is done.
        if books.running == 0 {
            self.history.arrives(now);
        }
        let function = &self.version.function;
        // Code that just failed is not started again for this call.
        if let Some(failure) = books.remembered(now) {
            return Err(failure.to_error(function));
        }
        if books.waiters.len() >= self.vm.config.queue_depth {
            let function = function.clone();
            let limit = self.limit();
            return Err(CallError::ConcurrencyLimit { function, limit });
        }
        let ticket = books.number();
        let (to, place) = oneshot::channel();
        books.waiters.push_back(Waiter { ticket, request_id: request_id.clone(), may_wait, to });
        let todo = books.dispatch(self, now, None);
        drop(books);
        let waiting = Waiting { pool: Arc::clone(self), ticket, place };
        self.act(todo);
        self.pulse.send_replace(());
        Ok(Taken::Later(waiting))
    }

    /// One call ended; its slot is free again, or its instance has to stop.
    pub(crate) fn end(self: &Arc<Self>, key: Key, call: u64, how: Event) {
        let now = self.vm.now();
        let mut books = self.books.lock();
        let Some(slot) = books.slots.get_mut(&key) else { return };
        let Some(at) = slot.calls.iter().position(|(number, _)| *number == call) else { return };
        slot.calls.swap_remove(at);
        if how == Event::CallEnded && slot.state.is_live() {
            slot.served += 1;
        }
        books.rest(self, 1, now);
        let mut todo = books.event(self, key, how, now);
        if !books.waiters.is_empty() || books.closing || !todo.stops.is_empty() {
            todo.append(books.dispatch(self, now, None));
        }
        drop(books);
        self.act(todo);
    }

    /// An event of an instance that does not end one call.
    pub(crate) fn event(self: &Arc<Self>, key: Key, event: Event) {
        let now = self.vm.now();
        let mut books = self.books.lock();
        let mut todo = books.event(self, key, event, now);
        todo.append(books.dispatch(self, now, None));
        drop(books);
        self.act(todo);
    }

    /// Reports whether the instance's start waits for memory. Calls that may not wait do not wait
    /// for that.
    pub(crate) fn start_is_short(self: &Arc<Self>, key: Key, is_short: bool) {
        let mut books = self.books.lock();
        let Some(slot) = books.slots.get_mut(&key) else { return };
        slot.is_short = is_short;
        let todo = books.dispatch(self, self.vm.now(), None);
        drop(books);
        self.act(todo);
    }

    /// The instance's start succeeded.
    pub(crate) fn ready(self: &Arc<Self>, key: Key, phases: StartPhases) {
        let now = self.vm.now();
        let mut books = self.books.lock();
        books.failure = None;
        books.no_start_before = None;
        books.uses.instances += 1;
        self.history.started(&phases);
        let mut todo = books.event(self, key, Event::Healthy, now);
        if let Some(slot) = books.slots.get_mut(&key) {
            slot.ready_at = Some(now);
        }
        todo.append(books.dispatch(self, now, Some((key, phases))));
        drop(books);
        self.act(todo);
        self.pulse.send_replace(());
    }

    /// The instance's start failed. Returns whether the failure differs from the one before.
    pub(crate) fn start_failed(self: &Arc<Self>, key: Key, failure: StartFailure) -> bool {
        let now = self.vm.now();
        let mut books = self.books.lock();
        let is_news = books.failure.as_ref().is_none_or(|kept| kept.failure != failure);
        let mut todo = books.event(self, key, Event::Kill(Why::NeverReady), now);
        if matches!(failure, StartFailure::Init(_)) {
            self.history.ended_badly(now, true);
        }
        if failure != StartFailure::CalledOff {
            books.remember(&failure, now);
            if books.live() + books.starting() == 0 {
                for waiter in books.waiters.drain(..) {
                    todo.failures.push((waiter.to, NoPlace::Start(failure.clone())));
                }
            }
        }
        todo.append(books.dispatch(self, now, None));
        drop(books);
        self.act(todo);
        self.pulse.send_replace(());
        is_news
    }

    /// The container exited by itself; `is_known`: the engine knows the exit status. Returns the
    /// calls that ran in it.
    pub(crate) fn exited(self: &Arc<Self>, key: Key, is_known: bool) -> Vec<RequestId> {
        let calls = self.calls(key);
        let now = self.vm.now();
        let mut books = self.books.lock();
        if is_known {
            let is_early = books.slots.get(&key).is_some_and(Slot::is_early);
            self.history.ended_badly(now, is_early);
        }
        books.crashed(key, now);
        drop(books);
        self.event(key, Event::Exited);
        calls
    }

    /// Why the instance is stopping; [`Why::Crashed`]: a call found it dead.
    pub(crate) fn why_stopping(&self, key: Key) -> Option<Why> {
        match self.books.lock().slots.get(&key)?.state {
            State::Stopping { why } | State::Gone { why } => Some(why),
            State::Starting | State::Idle { .. } | State::Busy { .. } | State::Draining { .. } => {
                None
            }
        }
    }

    /// The container is removed.
    pub(crate) fn gone(self: &Arc<Self>, key: Key) {
        let now = self.vm.now();
        let mut books = self.books.lock();
        if let Some(slot) = books.slots.remove(&key) {
            books.rest(self, slot.calls.len(), now);
        }
        books.available.retain(|other| *other != key);
        let todo = books.dispatch(self, now, None);
        let forgotten = books.is_forgotten(self, now);
        drop(books);
        self.act(todo);
        self.pulse.send_replace(());
        if forgotten {
            self.vm.forget(self);
        }
    }

    /// Applies the instance's timers; returns when to check them again.
    pub(crate) fn tick(self: &Arc<Self>, key: Key) -> Look {
        let now = self.vm.now();
        let mut books = self.books.lock();
        let idle = books.idle(self, key);
        let is_spare = books.live() > books.floor(self);
        let mut todo = books.event(self, key, Event::Tick { idle: is_spare.then_some(idle) }, now);
        let frozen = books.slots.get(&key).map_or(Freeze::Never, |slot| self.freeze(slot, now));
        let look = match books.slots.get(&key).map(|slot| slot.state) {
            Some(State::Idle { since }) if is_spare => since + idle,
            // An instance that becomes idle later has its whole idle time ahead, which may have
            // changed by then.
            Some(State::Idle { .. } | State::Busy { .. }) => {
                now + idle.min(self.vm.config.keep.default)
            }
            Some(State::Draining { kill_at, .. }) => kill_at,
            Some(State::Starting | State::Stopping { .. } | State::Gone { .. }) | None => {
                now + LONGEST_LOOK
            }
        };
        if !todo.stops.is_empty() {
            todo.append(books.dispatch(self, now, None));
        }
        let look = match frozen {
            Freeze::At(then) => look.min(then),
            Freeze::Never | Freeze::NeedsFreezer => look,
        };
        drop(books);
        self.act(todo);
        Look {
            at: Instant::now() + look.saturating_sub(now).clamp(SHORTEST_LOOK, LONGEST_LOOK),
            needs_freezer: frozen == Freeze::NeedsFreezer,
        }
    }

    /// Freezes an instance that was idle for long enough, where its function allows it.
    fn freeze(&self, slot: &Slot, now: Moment) -> Freeze {
        let Some(after) = self.freeze_after else { return Freeze::Never };
        let since = match slot.state {
            State::Idle { since } => since,
            State::Busy { .. } => now, // it may become idle without an event
            State::Starting
            | State::Draining { .. }
            | State::Stopping { .. }
            | State::Gone { .. } => {
                return Freeze::Never;
            }
        };
        if slot.instance.is_frozen() {
            return Freeze::Never;
        }
        if now < since + after {
            return Freeze::At(since + after);
        }
        if !slot.instance.knows_freezer() {
            return Freeze::NeedsFreezer;
        }
        slot.instance.freeze();
        Freeze::Never
    }

    /// Signalled for each start that ended and each call that begins to wait.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.pulse.subscribe()
    }

    pub(crate) fn has_waiting_calls(&self) -> bool {
        !self.books.lock().waiters.is_empty()
    }

    /// Whether a start in progress still has a call to serve, or a minimum to reach.
    pub(crate) fn is_start_needed(&self) -> bool {
        let books = self.books.lock();
        let others = books.starting().saturating_sub(1);
        books.waiters.len() > others as usize * self.concurrency()
            || books.live() + others < books.floor(self)
            || books.slots.values().any(|slot| slot.is_starting_ahead() && !slot.is_short)
    }

    /// Whether the start in progress is only a prewarm: no other instance is evicted for it.
    pub(crate) fn is_guess_only(&self) -> bool {
        let books = self.books.lock();
        books.waiters.is_empty()
            && books.live() >= books.floor(self)
            && books.slots.values().any(Slot::is_starting_ahead)
    }

    /// Whether instances of the function end so often that it has to boot its own cells.
    pub(crate) fn is_turbulent(&self) -> bool {
        self.history.is_turbulent(self.vm.now())
    }

    /// Whether they end before they have served much.
    pub(crate) fn starts_in_vain(&self) -> bool {
        self.history.starts_in_vain(self.vm.now())
    }

    /// Whether one more instance fits without an eviction, except of unassigned cells.
    fn has_memory(&self) -> bool {
        self.vm.budget.shortage(self.version.spec.memory) <= self.vm.cells.spare_bytes()
    }

    /// The keep-alive decision for idle instances, and when the last call of the function ended if
    /// none runs.
    fn choice(&self) -> (Choice, Option<Moment>) {
        let settings = &self.vm.config.keep;
        match self.version.spec.idle_timeout {
            Some(idle) => (Choice { idle, ready: None, why: policy::Why::Set }, None),
            None if self.policy.one_call => {
                let idle = settings.default;
                (Choice { idle, ready: None, why: policy::Why::OneCall }, None)
            }
            None => self.history.choice(settings),
        }
    }

    /// The window in which an instance should be ready for the next call, if it can be predicted.
    fn expected(&self) -> Option<(Moment, Moment)> {
        let (choice, ended) = self.choice();
        let ready = choice.ready?;
        let ended = ended?;
        Some((ended + ready.after, ended + ready.until))
    }

    /// Prewarms: starts an instance shortly before a call is expected, if there is none and memory
    /// is free. Called on a timer; returns whether it did.
    pub(crate) fn start_ahead(self: &Arc<Self>) -> bool {
        let now = self.vm.now();
        let Some((from, until)) = self.expected() else { return false };
        if now < from || now >= until || !self.has_memory() {
            return false;
        }
        let mut books = self.books.lock();
        let todo = books.start_ahead(self, now, until);
        drop(books);
        let starts = !todo.starts.is_empty();
        if starts {
            self.vm.metrics.prewarms.inc();
        }
        self.act(todo);
        starts
    }

    /// The keep-alive decision for listings; `None` if there is nothing to show.
    pub(crate) fn keep(&self) -> Option<Keep> {
        let (Choice { idle, ready, why }, _) = self.choice();
        if why == policy::Why::OneCall || matches!(why, policy::Why::TooFew { samples: 0 }) {
            return None;
        }
        Some(Keep {
            function: self.version.function.clone(),
            version: self.version.number,
            idle,
            ready_after: ready.map(|ready| ready.after),
            by: why.by(),
            why: why.to_string(),
        })
    }

    /// Records the calls since the last time; returns the rate. Called before an eviction, so that
    /// calls are weighed by the clock of their time, and on a timer, so that the rate is up to
    /// date.
    pub(crate) fn note_uses(&self, clock: Clock) -> f64 {
        let Uses { calls, instances } = std::mem::take(&mut self.books.lock().uses);
        let now = self.vm.now();
        let mut worth = self.worth.lock();
        if calls + instances > 0 {
            worth.rate.add(calls, now);
            worth.clock = clock.now();
        }
        worth.rate.at(now)
    }

    /// The version is to be served: at least one instance now, `minInstances` from now on.
    pub(crate) async fn ensure_ready(self: &Arc<Self>) -> Result<(), CallError> {
        let spec = &self.version.spec;
        let want = spec.min_instances.clamp(1, spec.max_instances.get());
        let mut pulse = self.pulse.subscribe();
        let seen = {
            let mut books = self.books.lock();
            books.wanted = true;
            books.closing = self.vm.is_draining();
            books.askers += 1;
            // An explicit request: try again at once.
            books.failure = None;
            books.no_start_before = None;
            books.brittle = None;
            books.failures
        };
        let _no_longer = Unask(self);
        loop {
            let todo = {
                let mut books = self.books.lock();
                if books.live() >= want {
                    return Ok(());
                }
                if books.closing || self.vm.closed.is_cancelled() {
                    return Err(StartFailure::CalledOff.to_error(&self.version.function));
                }
                // A start failed since this request began, and no other one is in progress.
                if books.failures != seen && books.starting() == 0 {
                    let failure = books.failure.as_ref().map(|kept| kept.failure.clone());
                    let failure = failure.unwrap_or(StartFailure::CalledOff);
                    return Err(failure.to_error(&self.version.function));
                }
                books.dispatch(self, self.vm.now(), None)
            };
            self.act(todo);
            let limit = self.vm.config.pull_timeout + 2 * self.vm.config.start_timeout;
            if tokio::time::timeout(limit, pulse.changed()).await.is_err() {
                let cause = format!("no instance became ready within {limit:?}");
                return Err(StartFailure::NoCapacity(cause).to_error(&self.version.function));
            }
        }
    }

    /// Starts what the minimum and the waiting calls need: called on timers.
    pub(crate) fn ensure(self: &Arc<Self>) {
        let now = self.vm.now();
        let mut books = self.books.lock();
        let todo = books.dispatch(self, now, None);
        let forgotten = books.is_forgotten(self, now);
        drop(books);
        self.act(todo);
        if forgotten {
            self.vm.forget(self);
        }
    }

    /// Stops every instance once it has no call; running and waiting calls end normally. `wanted`:
    /// the pool is only closed for a drain of the VM and may be opened again.
    pub(crate) fn close(self: &Arc<Self>, wanted: bool) {
        {
            let mut books = self.books.lock();
            books.closing = true;
            books.wanted &= wanted;
        }
        self.ensure();
        self.pulse.send_replace(());
    }

    /// Reverts [`Pool::close`].
    pub(crate) fn open(self: &Arc<Self>) {
        self.books.lock().closing = false;
        self.ensure();
    }

    /// Kills all instances, with or without calls; waiting calls get an error.
    pub(crate) fn kill_all(self: &Arc<Self>) {
        let (keys, waiters) = {
            let mut books = self.books.lock();
            let keys: Vec<Key> = books.slots.keys().copied().collect();
            (keys, std::mem::take(&mut books.waiters))
        };
        for waiter in waiters {
            drop(waiter.to.send(Err(NoPlace::Start(StartFailure::CalledOff))));
        }
        for key in keys {
            self.event(key, Event::Kill(Why::Asked));
        }
    }

    /// Adds an instance that was found running. Its version counts as wanted only once the gateway
    /// asks for it.
    pub(crate) fn adopt(self: &Arc<Self>, instance: Arc<Instance>) -> Key {
        let mut books = self.books.lock();
        let key = books.number();
        let state = State::Idle { since: self.vm.now() };
        books.slots.insert(key, Slot::new(instance, state));
        books.uses.instances += 1;
        books.refresh(key, self.concurrency());
        key
    }

    /// Idle instances that may be evicted for another version, and the value of each.
    pub(crate) fn evictable(&self, clock: Clock) -> Vec<Idle> {
        let rate = self.note_uses(clock);
        let start = self.history.start_cost();
        let memory = self.version.spec.memory.get();
        let used_at = self.worth.lock().clock;
        let books = self.books.lock();
        let spare = books.live().saturating_sub(books.floor(self)) as usize;
        let mut idle: Vec<_> = books
            .slots
            .iter()
            .filter_map(|(key, slot)| match slot.state {
                State::Idle { since } => Some((since, *key)),
                State::Starting
                | State::Busy { .. }
                | State::Draining { .. }
                | State::Stopping { .. }
                | State::Gone { .. } => None,
            })
            .collect();
        idle.sort_unstable();
        let busy = books.live().saturating_sub(idle.len() as u32);
        let ranked = idle.iter().rev().zip(busy + 1..).map(|(&(since, key), rank)| {
            let priority = used_at + cost::worth(rate, start, memory, rank);
            Idle { key, since, priority }
        });
        let mut ranked: Vec<_> = ranked.collect();
        ranked.reverse(); // idle longest first
        ranked.truncate(spare);
        ranked
    }

    /// Stops an instance to free its memory for another version, if it is still idle.
    pub(crate) fn evict(self: &Arc<Self>, key: Key) -> bool {
        let mut books = self.books.lock();
        let idle =
            books.slots.get(&key).is_some_and(|slot| matches!(slot.state, State::Idle { .. }));
        if idle {
            let todo = books.event(self, key, Event::Stop(Why::Evicted), self.vm.now());
            drop(books);
            self.act(todo);
        }
        idle
    }

    /// Calls that hold a slot in the instance.
    pub(crate) fn calls(&self, key: Key) -> Vec<RequestId> {
        let books = self.books.lock();
        let calls = books.slots.get(&key).into_iter().flat_map(|slot| &slot.calls);
        calls.map(|(_, request_id)| request_id.clone()).collect()
    }

    /// Number of running calls and of waiting calls.
    pub(crate) fn load(&self) -> (u32, u32) {
        let books = self.books.lock();
        let active = books.slots.values().map(|slot| slot.calls.len()).sum::<usize>();
        (active as u32, books.waiters.len() as u32)
    }

    pub(crate) fn statuses(&self) -> Vec<InstanceStatus> {
        let books = self.books.lock();
        let status = |slot: &Slot| InstanceStatus {
            id: slot.instance.id().clone(),
            function: self.version.function.clone(),
            version: self.version.number,
            state: slot.state.name().into(),
            calls_active: slot.state.active(),
            concurrency: self.version.spec.concurrency.get(),
            started_at: slot.instance.asked_at,
        };
        books.slots.values().map(status).collect()
    }

    fn lease(self: &Arc<Self>, place: Place) -> Lease {
        Lease::new(Arc::clone(self), place.instance, place.key, place.call)
    }

    fn act(self: &Arc<Self>, todo: Todo) {
        for instance in todo.stops {
            instance.begin_stop();
        }
        for instance in todo.changed {
            instance.changed.notify_one();
        }
        for (to, place, started) in todo.places {
            // A call that was cancelled in this moment drops the lease, which frees the slot.
            drop(to.send(Ok(Placed { lease: self.lease(place), started })));
        }
        for (to, why) in todo.failures {
            drop(to.send(Err(why)));
        }
        for (key, instance) in todo.starts {
            self.vm.launch(self, key, instance);
        }
    }
}

/// Ends the request of one `ensure_ready`.
struct Unask<'a>(&'a Arc<Pool>);

impl Drop for Unask<'_> {
    fn drop(&mut self) {
        self.0.books.lock().askers -= 1;
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("version", &self.version.id()).finish_non_exhaustive()
    }
}
