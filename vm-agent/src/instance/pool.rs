//! The instances of one version, and the calls that wait for a place in one. The agent's only shared
//! state on the path of a call: one short lock, never held across an await; whatever follows from a
//! change (a hand-over, a start, a kill) is collected as [`Todo`] and done after the lock is gone.
//!
//! Rules, each under test below or in `tests/calls.rs`:
//! - A free place is given at once, in the instance used last. Else the call waits, first come first served,
//!   and is served by whichever place frees first, of an old instance or of a new one.
//! - Never more starts than waiting calls need, than `maxInstances` allows, than the version's share.
//! - A start that fails fails those who wait, once nothing else could serve them; the code's own failure is
//!   remembered for a while that doubles, so that broken code is not started for each call.

use super::{
    Instance,
    start::StartFailure,
    state::{Effect, Event, Moment, Policy, State, Why},
};
use crate::{
    call::lease::{Lease, Placed},
    vm::LocalVm,
};
use epsilon_api::{
    error::CallError,
    function::Version,
    ids::{InstanceId, RequestId},
    vm::{InstanceStatus, StartPhases},
};
use http::HeaderValue;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

/// Where a waiting call gets its place, or the reason why there is none.
type Reply = oneshot::Sender<Result<Placed, StartFailure>>;

/// An instance's place in its pool; never used twice.
pub(crate) type Key = u64;

/// How long the first failure of a version's code is remembered; doubled up to [`REMEMBER_MAX`].
const REMEMBER: Duration = Duration::from_secs(1);
const REMEMBER_MAX: Duration = Duration::from_secs(30);
/// How long a version with live instances waits after a start that this VM could not make.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(500);
/// A timer of an instance is never looked at more often than this.
const SHORTEST_LOOK: Duration = Duration::from_millis(10);
/// An instance without timers is looked at all the same, for the sake of its successor states.
const LONGEST_LOOK: Duration = Duration::from_secs(3600);

pub(crate) struct Pool {
    pub(crate) version: Arc<Version>,
    /// What every call's deadline header says at hand-over: the whole timeout.
    pub(crate) deadline_ms: HeaderValue,
    pub(crate) vm: Arc<LocalVm>,
    policy: Policy,
    inner: Mutex<Inner>,
    /// Bumped when an instance became ready, failed or went.
    pulse: watch::Sender<()>,
}

#[derive(Default)]
struct Inner {
    slots: BTreeMap<Key, Slot>,
    /// Live instances with a free place; the one used last is at the end.
    available: Vec<Key>,
    waiters: VecDeque<Waiter>,
    next: u64,
    /// The version is wanted: `minInstances` holds.
    wanted: bool,
    /// Instances that an `ensure_ready` asks for beyond that.
    asked: u32,
    /// Idle instances go at once: the version was retired, or the VM drains.
    closing: bool,
    failure: Option<Remembered>,
    no_start_before: Option<Moment>,
    failures: u64,
}

struct Slot {
    instance: Arc<Instance>,
    state: State,
    calls: Vec<(u64, RequestId)>,
}

struct Waiter {
    ticket: u64,
    request_id: RequestId,
    to: Reply,
}

struct Remembered {
    failure: StartFailure,
    until: Moment,
    pause: Duration,
}

/// What follows from a change, to be done without the lock.
#[derive(Default)]
struct Todo {
    places: Vec<(Reply, Place, Option<StartPhases>)>,
    failures: Vec<(Reply, StartFailure)>,
    starts: Vec<(Key, Arc<Instance>)>,
    stops: Vec<Arc<Instance>>,
    changed: Vec<Arc<Instance>>,
}

struct Place {
    key: Key,
    call: u64,
    instance: Arc<Instance>,
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
    pub(crate) place: oneshot::Receiver<Result<Placed, StartFailure>>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut inner = self.pool.inner.lock();
        if let Some(at) = inner.position(self.ticket) {
            inner.waiters.remove(at);
        }
        // A place that was sent meanwhile gives itself back when the channel is dropped, after this.
    }
}

impl Waiting {
    /// Whether a start is under way that this call's turn depends on.
    pub(crate) fn is_start_coming(&self) -> bool {
        let inner = self.pool.inner.lock();
        let places = inner.starting() as usize * self.pool.concurrency();
        inner.position(self.ticket).is_some_and(|at| at < places)
    }
}

impl Pool {
    pub(crate) fn new(vm: Arc<LocalVm>, version: Arc<Version>) -> Arc<Self> {
        let spec = &version.spec;
        let policy = Policy { idle: spec.idle_timeout, timeout: spec.timeout };
        let deadline_ms =
            HeaderValue::from(u64::try_from(spec.timeout.as_millis()).unwrap_or(u64::MAX));
        Arc::new(Self {
            version,
            deadline_ms,
            vm,
            policy,
            inner: Mutex::default(),
            pulse: watch::Sender::new(()),
        })
    }

    fn concurrency(&self) -> usize {
        self.version.spec.concurrency.get() as usize
    }

    /// Places at most, for the answer to one who got none.
    pub(crate) fn limit(&self) -> u32 {
        self.version.spec.max_instances.get().saturating_mul(self.version.spec.concurrency.get())
    }

    /// A place for one call: now, or as soon as one is free.
    pub(crate) fn take(self: &Arc<Self>, request_id: &RequestId) -> Result<Taken, CallError> {
        let mut inner = self.inner.lock();
        if let Some(place) = inner.begin(self, request_id) {
            drop(inner);
            return Ok(Taken::Now(self.lease(place)));
        }
        let now = self.vm.now();
        let function = &self.version.function;
        if let Some(failure) = inner.remembered(now) {
            return Err(failure.to_error(function));
        }
        if inner.waiters.len() >= self.vm.config.queue_depth {
            let (function, limit) = (function.clone(), self.limit());
            return Err(CallError::ConcurrencyLimit { function, limit });
        }
        let ticket = inner.number();
        let (to, place) = oneshot::channel();
        inner.waiters.push_back(Waiter { ticket, request_id: request_id.clone(), to });
        let todo = inner.dispatch(self, now, None);
        drop(inner);
        let waiting = Waiting { pool: Arc::clone(self), ticket, place };
        self.act(todo);
        Ok(Taken::Later(waiting))
    }

    /// One call is over; its place is free again, or its instance is to go.
    pub(crate) fn end(self: &Arc<Self>, key: Key, call: u64, how: Event) {
        let now = self.vm.now();
        let mut inner = self.inner.lock();
        let Some(slot) = inner.slots.get_mut(&key) else { return };
        let Some(at) = slot.calls.iter().position(|(number, _)| *number == call) else { return };
        slot.calls.swap_remove(at);
        let mut todo = inner.event(self, key, how, now);
        if !inner.waiters.is_empty() || inner.closing || !todo.stops.is_empty() {
            todo.append(inner.dispatch(self, now, None));
        }
        drop(inner);
        self.act(todo);
    }

    /// An event of an instance that is not about one call.
    pub(crate) fn event(self: &Arc<Self>, key: Key, event: Event) {
        let now = self.vm.now();
        let mut inner = self.inner.lock();
        let mut todo = inner.event(self, key, event, now);
        todo.append(inner.dispatch(self, now, None));
        drop(inner);
        self.act(todo);
    }

    /// The instance's start worked.
    pub(crate) fn ready(self: &Arc<Self>, key: Key, phases: StartPhases) {
        let now = self.vm.now();
        let mut inner = self.inner.lock();
        inner.failure = None;
        inner.no_start_before = None;
        let mut todo = inner.event(self, key, Event::Healthy, now);
        todo.append(inner.dispatch(self, now, Some((key, phases))));
        drop(inner);
        self.act(todo);
        self.pulse.send_replace(());
    }

    /// The instance's start did not work.
    pub(crate) fn start_failed(self: &Arc<Self>, key: Key, failure: StartFailure) {
        let now = self.vm.now();
        let mut inner = self.inner.lock();
        let mut todo = inner.event(self, key, Event::Kill(Why::NeverReady), now);
        if failure != StartFailure::CalledOff {
            inner.remember(&failure, now);
            if inner.live() + inner.starting() == 0 {
                for waiter in inner.waiters.drain(..) {
                    todo.failures.push((waiter.to, failure.clone()));
                }
            }
        }
        todo.append(inner.dispatch(self, now, None));
        drop(inner);
        self.act(todo);
        self.pulse.send_replace(());
    }

    /// The container exited by itself. Answers with the calls that ran in it.
    pub(crate) fn exited(self: &Arc<Self>, key: Key) -> Vec<RequestId> {
        let calls = self.calls(key);
        self.event(key, Event::Exited);
        calls
    }

    /// Whether a call found the instance dead.
    pub(crate) fn is_lost(&self, key: Key) -> bool {
        let inner = self.inner.lock();
        let state = inner.slots.get(&key).map(|slot| slot.state);
        state == Some(State::Stopping { why: Why::Crashed })
    }

    /// The container is away.
    pub(crate) fn gone(self: &Arc<Self>, key: Key) {
        let now = self.vm.now();
        let mut inner = self.inner.lock();
        inner.slots.remove(&key);
        inner.available.retain(|other| *other != key);
        let todo = inner.dispatch(self, now, None);
        let forgotten = inner.is_forgotten(now);
        drop(inner);
        self.act(todo);
        self.pulse.send_replace(());
        if forgotten {
            self.vm.forget(self);
        }
    }

    /// Lets the instance's timers act; says when to look at them again.
    pub(crate) fn tick(self: &Arc<Self>, key: Key) -> Instant {
        let now = self.vm.now();
        let mut inner = self.inner.lock();
        let spare = inner.live() > inner.floor(self);
        let mut todo = inner.event(self, key, Event::Tick { spare }, now);
        let look = match inner.slots.get(&key).map(|slot| slot.state) {
            Some(State::Idle { since }) if spare => since + self.policy.idle,
            // One that becomes idle after now has its whole idle time before it.
            Some(State::Idle { .. } | State::Busy { .. }) => now + self.policy.idle,
            Some(State::Draining { kill_at, .. }) => kill_at,
            Some(State::Starting | State::Stopping { .. } | State::Gone { .. }) | None => {
                now + LONGEST_LOOK
            }
        };
        if !todo.stops.is_empty() {
            todo.append(inner.dispatch(self, now, None));
        }
        drop(inner);
        self.act(todo);
        Instant::now() + look.saturating_sub(now).clamp(SHORTEST_LOOK, LONGEST_LOOK)
    }

    /// Whether one of the starts under way still has somebody to serve.
    pub(crate) fn is_start_needed(&self) -> bool {
        let inner = self.inner.lock();
        let others = inner.starting().saturating_sub(1);
        inner.waiters.len() > others as usize * self.concurrency()
            || inner.live() + others < inner.floor(self)
    }

    /// The version is to be served: at least one instance now, `minInstances` from now on.
    pub(crate) async fn ensure_ready(self: &Arc<Self>) -> Result<(), CallError> {
        let spec = &self.version.spec;
        let want = spec.min_instances.clamp(1, spec.max_instances.get());
        let mut pulse = self.pulse.subscribe();
        let seen = {
            let mut inner = self.inner.lock();
            (inner.wanted, inner.closing) = (true, false);
            inner.asked = want;
            (inner.failure, inner.no_start_before) = (None, None); // asked for: try again at once
            inner.failures
        };
        let _no_longer = Unask(self);
        loop {
            let todo = {
                let mut inner = self.inner.lock();
                if inner.live() >= want {
                    return Ok(());
                }
                if self.vm.closed.is_cancelled() {
                    return Err(StartFailure::CalledOff.to_error(&self.version.function));
                }
                if inner.failures != seen && inner.starting() == 0 {
                    let failure = inner.failure.as_ref().map(|kept| kept.failure.clone());
                    let failure = failure.unwrap_or(StartFailure::CalledOff);
                    return Err(failure.to_error(&self.version.function));
                }
                inner.dispatch(self, self.vm.now(), None)
            };
            self.act(todo);
            let limit = self.vm.config.pull_timeout + 2 * self.vm.config.start_timeout;
            if tokio::time::timeout(limit, pulse.changed()).await.is_err() {
                let cause = format!("no instance became ready within {limit:?}");
                return Err(StartFailure::NoCapacity(cause).to_error(&self.version.function));
            }
        }
    }

    /// Keeps what should be there, and starts what those who wait need: called on timers.
    pub(crate) fn ensure(self: &Arc<Self>) {
        let now = self.vm.now();
        let mut inner = self.inner.lock();
        let todo = inner.dispatch(self, now, None);
        let forgotten = inner.is_forgotten(now);
        drop(inner);
        self.act(todo);
        if forgotten {
            self.vm.forget(self);
        }
    }

    /// Lets running and waiting calls end and every instance go that has none. `wanted`: the version is only
    /// resting (its VM drains) and may be opened again.
    pub(crate) fn close(self: &Arc<Self>, wanted: bool) {
        {
            let mut inner = self.inner.lock();
            inner.closing = true;
            inner.wanted &= wanted;
        }
        self.ensure();
    }

    /// Ends [`Pool::close`].
    pub(crate) fn open(self: &Arc<Self>) {
        self.inner.lock().closing = false;
        self.ensure();
    }

    /// Kills what is left, calls or not.
    pub(crate) fn kill_all(self: &Arc<Self>) {
        let keys: Vec<Key> = self.inner.lock().slots.keys().copied().collect();
        for key in keys {
            self.event(key, Event::Kill(Why::Asked));
        }
    }

    /// Takes in an instance that was found running. Its version counts as wanted only once somebody
    /// asks for it.
    pub(crate) fn adopt(self: &Arc<Self>, instance: Arc<Instance>) -> Key {
        let mut inner = self.inner.lock();
        let key = inner.number();
        let state = State::Idle { since: self.vm.now() };
        inner.slots.insert(key, Slot { instance, state, calls: Vec::new() });
        inner.refresh(key, self.concurrency());
        key
    }

    /// Idle instances that may be taken for the sake of another version: since when, and which.
    pub(crate) fn evictable(&self) -> Vec<(Moment, Key)> {
        let inner = self.inner.lock();
        let spare = inner.live().saturating_sub(inner.floor(self)) as usize;
        let mut idle: Vec<_> = inner
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
        idle.truncate(spare);
        idle
    }

    /// Takes an instance away for the sake of another version, if it is still idle.
    pub(crate) fn evict(self: &Arc<Self>, key: Key) -> bool {
        let mut inner = self.inner.lock();
        let idle =
            inner.slots.get(&key).is_some_and(|slot| matches!(slot.state, State::Idle { .. }));
        if idle {
            let todo = inner.event(self, key, Event::Stop(Why::Evicted), self.vm.now());
            drop(inner);
            self.act(todo);
        }
        idle
    }

    /// Calls that hold a place in the instance.
    pub(crate) fn calls(&self, key: Key) -> Vec<RequestId> {
        let inner = self.inner.lock();
        let calls = inner.slots.get(&key).into_iter().flat_map(|slot| &slot.calls);
        calls.map(|(_, request_id)| request_id.clone()).collect()
    }

    /// Calls that run and calls that wait.
    pub(crate) fn load(&self) -> (u32, u32) {
        let inner = self.inner.lock();
        let active = inner.slots.values().map(|slot| slot.calls.len()).sum::<usize>();
        (active as u32, inner.waiters.len() as u32)
    }

    pub(crate) fn statuses(&self) -> Vec<InstanceStatus> {
        let inner = self.inner.lock();
        let status = |slot: &Slot| InstanceStatus {
            id: slot.instance.id.clone(),
            function: self.version.function.clone(),
            version: self.version.number,
            state: slot.state.name().into(),
            calls_active: slot.state.active(),
            started_at: slot.instance.asked_at,
        };
        inner.slots.values().map(status).collect()
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
            // One who left in this moment drops the lease, which gives the place back.
            drop(to.send(Ok(Placed { lease: self.lease(place), started })));
        }
        for (to, failure) in todo.failures {
            drop(to.send(Err(failure)));
        }
        for (key, instance) in todo.starts {
            self.vm.launch(self, key, instance);
        }
    }
}

/// Takes back what `ensure_ready` asked for.
struct Unask<'a>(&'a Arc<Pool>);

impl Drop for Unask<'_> {
    fn drop(&mut self) {
        self.0.inner.lock().asked = 0;
    }
}

impl Todo {
    fn append(&mut self, mut other: Self) {
        self.places.append(&mut other.places);
        self.failures.append(&mut other.failures);
        self.starts.append(&mut other.starts);
        self.stops.append(&mut other.stops);
        self.changed.append(&mut other.changed);
    }
}

impl Inner {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn position(&self, ticket: u64) -> Option<usize> {
        self.waiters.iter().position(|waiter| waiter.ticket == ticket)
    }

    fn live(&self) -> u32 {
        self.slots.values().filter(|slot| slot.state.is_live()).count() as u32
    }

    fn starting(&self) -> u32 {
        self.slots.values().filter(|slot| slot.state == State::Starting).count() as u32
    }

    /// Instances below which none is reaped or evicted.
    fn floor(&self, pool: &Pool) -> u32 {
        let spec = &pool.version.spec;
        let min = if self.wanted && !self.closing { spec.min_instances } else { 0 };
        min.max(self.asked).min(spec.max_instances.get())
    }

    /// Nothing is here and nothing is to be remembered.
    fn is_forgotten(&self, now: Moment) -> bool {
        let remembers = self.failure.as_ref().is_some_and(|kept| now < kept.until);
        let empty = self.slots.is_empty() && self.waiters.is_empty();
        empty && !self.wanted && self.asked == 0 && !remembers
    }

    fn remembered(&self, now: Moment) -> Option<&StartFailure> {
        let kept = self.failure.as_ref()?;
        let counts = matches!(kept.failure, StartFailure::Init(_)) && now < kept.until;
        (counts && self.live() + self.starting() == 0).then_some(&kept.failure)
    }

    fn remember(&mut self, failure: &StartFailure, now: Moment) {
        self.failures += 1;
        let before = self.failure.take().map(|kept| kept.pause);
        let pause = match failure {
            StartFailure::Init(_) => before.map_or(REMEMBER, |pause| (pause * 2).min(REMEMBER_MAX)),
            StartFailure::NoCapacity(_) | StartFailure::CalledOff => NO_ROOM_PAUSE,
        };
        self.no_start_before = Some(now + pause);
        self.failure = Some(Remembered { failure: failure.clone(), until: now + pause, pause });
    }

    /// Begins a call in the instance used last among those with a free place.
    fn begin(&mut self, pool: &Pool, request_id: &RequestId) -> Option<Place> {
        while let Some(&key) = self.available.last() {
            let call = self.number();
            let slot = self.slots.get_mut(&key)?;
            match slot.state.step(Event::CallBegan, Moment::ZERO, &pool.policy) {
                Ok((state, _)) => {
                    slot.state = state;
                    slot.calls.push((call, request_id.clone()));
                    if slot.calls.len() >= pool.concurrency() {
                        self.available.pop();
                    }
                    return Some(Place { key, call, instance: Arc::clone(&slot.instance) });
                }
                Err(illegal) => {
                    tracing::error!(%illegal, instance = %slot.instance.id, "A bug in the pool.");
                    self.available.pop();
                }
            }
        }
        None
    }

    fn event(&mut self, pool: &Pool, key: Key, event: Event, now: Moment) -> Todo {
        let mut todo = Todo::default();
        let Some(slot) = self.slots.get_mut(&key) else { return todo };
        let before = slot.state;
        match before.step(event, now, &pool.policy) {
            Ok((state, effect)) => {
                slot.state = state;
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
                tracing::error!(%illegal, instance = %slot.instance.id, "A bug in the pool.");
            }
        }
        self.refresh(key, pool.concurrency());
        todo
    }

    /// Holds up the rule of `available`: exactly the live instances with a free place.
    fn refresh(&mut self, key: Key, concurrency: usize) {
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

    /// Serves those who wait, starts what they need, lets go what nobody needs.
    fn dispatch(&mut self, pool: &Pool, now: Moment, fresh: Option<(Key, StartPhases)>) -> Todo {
        let mut todo = Todo::default();
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
        while self.wants_start(pool, now) {
            let id = InstanceId::random();
            match Instance::new(id, Arc::clone(&pool.version), pool.vm.config.connection_idle) {
                Ok(instance) => {
                    let (key, instance) = (self.number(), Arc::new(instance));
                    let slot = Slot {
                        instance: Arc::clone(&instance),
                        state: State::Starting,
                        calls: Vec::new(),
                    };
                    self.slots.insert(key, slot);
                    todo.starts.push((key, instance));
                }
                Err(err) => {
                    tracing::error!(%err, "A function's name is no container's name.");
                    break;
                }
            }
        }
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

    fn wants_start(&self, pool: &Pool, now: Moment) -> bool {
        let (starting, live) = (self.starting(), self.live());
        if pool.vm.closed.is_cancelled()
            || starting + live >= pool.version.spec.max_instances.get()
            || starting as usize >= pool.vm.config.starts_per_version
        {
            return false;
        }
        let resting = self.no_start_before.is_some_and(|then| now < then);
        let calls_wait = self.waiters.len() > starting as usize * pool.concurrency();
        (calls_wait && !(resting && starting + live > 0))
            || (starting + live < self.floor(pool) && !resting)
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("version", &self.version.id()).finish_non_exhaustive()
    }
}
