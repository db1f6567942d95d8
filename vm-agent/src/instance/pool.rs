//! The instances of one version, and the calls that wait for a slot in one. The agent's only shared
//! state on the path of a call: one short lock, never held across an await. State and decisions are
//! in `pool/state.rs`; what follows from a change (a hand-over, a start, a kill) is collected as
//! [`Actions`] there and carried out here after the lock is released.
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
use super::lease::{Lease, QueuedLease};
use super::start::failure::StartFailure;
use super::state::{Event, Moment, Policy, State, StopReason};
use crate::cell::Cells;
use crate::context::VmContext;
use crate::keepalive::cost::{EvictionClock, Rate};
use crate::keepalive::history::History;
use crate::keepalive::policy::Choice;
use crate::keepalive::{cost, policy};
use epsilon_api::{
    error::VmError,
    function::{Isolation, Version},
    ids::RequestId,
    vm::{InstanceStatus, Keep, StartPhases},
};
use http::HeaderValue;
use parking_lot::Mutex;
use state::{Actions, Entry, PoolState, Slot, Uses, Waiter};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

/// Sends a waiting call its lease, or the reason why it gets none.
type Reply = oneshot::Sender<Result<QueuedLease, NoSlot>>;

/// Why a waiting call gets no slot.
#[derive(Debug)]
pub(crate) enum NoSlot {
    /// The start that was to serve it failed.
    Start(StartFailure),
    /// It may not wait, and no start in progress would serve it.
    Busy,
}

/// Result of checking an instance's timers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimerCheck {
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
const SHORTEST_CHECK: Duration = Duration::from_millis(10);
/// Longest pause: an instance without timers is checked all the same, in case its state changes.
const LONGEST_CHECK: Duration = Duration::from_secs(3600);

/// What a pool needs of its VM beyond what all of them share: the task of an instance, and memory
/// that other pools could give back. Implemented by `vm.rs`.
pub(crate) trait PoolHost: Send + Sync {
    /// Runs a new instance in a task of its own.
    fn start_instance(&self, pool: &Arc<Pool>, key: Key, instance: Arc<Instance>);

    /// Removes a pool that is empty and unwanted.
    fn forget(&self, pool: &Arc<Pool>);

    /// Whether idle instances of other versions have `shortage` bytes.
    fn can_evict(&self, shortage: u64, needy: &Arc<Pool>) -> bool;

    /// Evicts idle instances of other versions, the one of lowest value first (Greedy-Dual,
    /// `keepalive/cost.rs`), until `shortage` bytes are being freed; all or nothing. Returns
    /// whether they are. Evicts nothing for a prewarm.
    fn evict(&self, shortage: u64, needy: &Arc<Pool>) -> bool;
}

pub(crate) struct Pool {
    pub(crate) version: Arc<Version>,
    /// Value of every call's deadline header at hand-over: the whole timeout.
    pub(crate) deadline_ms: HeaderValue,
    pub(crate) context: Arc<VmContext>,
    cells: Arc<Cells>,
    pub(crate) host: Arc<dyn PoolHost>,
    policy: Policy,
    /// How long an instance is idle before its processes are frozen; `None`: never.
    freeze_after: Option<Duration>,
    /// The function's history, of all its versions.
    history: Arc<History>,
    state: Mutex<PoolState>,
    value: Mutex<EvictionValue>,
    /// Signals that an instance became ready, failed or was removed, or that a call began to wait.
    pulse: watch::Sender<()>,
}

/// Value of its instances for the eviction order; only used by evictions and a timer.
#[derive(Debug, Default)]
struct EvictionValue {
    rate: Rate,
    /// The eviction clock at the last use.
    clock: f64,
}

/// An idle instance that may be evicted for another version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evictable {
    pub(crate) key: Key,
    pub(crate) since: Moment,
    /// The lowest priority is evicted first.
    pub(crate) priority: f64,
}

/// What a call gets from its pool.
pub(crate) enum Admission {
    Now(Lease),
    Later(Waiting),
}

/// A call in the queue. Dropping it leaves the queue.
pub(crate) struct Waiting {
    pool: Arc<Pool>,
    ticket: u64,
    pub(crate) slot: oneshot::Receiver<Result<QueuedLease, NoSlot>>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut pool_state = self.pool.state.lock();
        if let Some(at) = pool_state.position(self.ticket) {
            pool_state.waiters.remove(at);
        }
        // A lease that was sent meanwhile frees its slot when the channel is dropped, after this.
    }
}

impl Waiting {
    /// Whether a start in progress is going to serve this call.
    pub(crate) fn is_start_coming(&self) -> bool {
        let pool_state = self.pool.state.lock();
        let slots = pool_state.starting() as usize * self.pool.concurrency();
        pool_state.position(self.ticket).is_some_and(|at| at < slots)
    }
}

impl Pool {
    pub(crate) fn new(
        context: Arc<VmContext>,
        cells: Arc<Cells>,
        host: Arc<dyn PoolHost>,
        version: Arc<Version>,
    ) -> Arc<Self> {
        let spec = &version.spec;
        let policy = Policy { timeout: spec.timeout, one_call: spec.isolation == Isolation::Call };
        let freeze_after = match spec.idle {
            epsilon_api::function::Idle::Freeze => context.config.freeze_after,
            epsilon_api::function::Idle::Run => None,
        };
        let history = context.histories.of(&version.function);
        let deadline_ms =
            HeaderValue::from(u64::try_from(spec.timeout.as_millis()).unwrap_or(u64::MAX));
        Arc::new(Self {
            version,
            deadline_ms,
            context,
            cells,
            host,
            policy,
            freeze_after,
            history,
            state: Mutex::default(),
            value: Mutex::default(),
            pulse: watch::Sender::new(()),
        })
    }

    /// Logs a warning about one of the pool's instances in the agent's own log.
    pub(crate) fn warn(&self, instance: &Instance, what: &'static str, cause: Option<&str>) {
        self.history.warnings.log(instance, what, cause);
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
    ) -> Result<Admission, VmError> {
        let mut pool_state = self.state.lock();
        if let Some(slot) = pool_state.begin(self, request_id) {
            drop(pool_state);
            return Ok(Admission::Now(self.lease(slot)));
        }
        let now = self.context.now();
        // The function's pause ends here, not when the start is done.
        if pool_state.running == 0 {
            self.history.call_arrived(now);
        }
        let function = &self.version.function;
        // Code that just failed is not started again for this call.
        if let Some(failure) = pool_state.remembered(now) {
            return Err(failure.to_error(function));
        }
        if pool_state.waiters.len() >= self.context.config.queue_depth {
            let function = function.clone();
            let limit = self.limit();
            return Err(VmError::ConcurrencyLimit { function, limit });
        }
        let ticket = pool_state.next_number();
        let (to, slot) = oneshot::channel();
        pool_state.waiters.push_back(Waiter {
            ticket,
            request_id: request_id.clone(),
            may_wait,
            to,
        });
        let actions = pool_state.dispatch(self, now, None);
        drop(pool_state);
        let waiting = Waiting { pool: Arc::clone(self), ticket, slot };
        self.carry_out(actions);
        self.pulse.send_replace(());
        Ok(Admission::Later(waiting))
    }

    /// One call ended; its slot is free again, or its instance has to stop.
    pub(crate) fn end(self: &Arc<Self>, key: Key, call: u64, how: Event) {
        let now = self.context.now();
        let mut pool_state = self.state.lock();
        let Some(entry) = pool_state.entries.get_mut(&key) else { return };
        let Some(at) = entry.calls.iter().position(|(number, _)| *number == call) else { return };
        entry.calls.swap_remove(at);
        if how == Event::CallEnded && entry.state.is_live() {
            entry.served += 1;
        }
        pool_state.calls_ended(self, 1, now);
        let mut actions = pool_state.event(self, key, how, now);
        if !pool_state.waiters.is_empty() || pool_state.closing || !actions.stops.is_empty() {
            actions.append(pool_state.dispatch(self, now, None));
        }
        drop(pool_state);
        self.carry_out(actions);
    }

    /// An event of an instance that does not end one call.
    pub(crate) fn event(self: &Arc<Self>, key: Key, event: Event) {
        let now = self.context.now();
        let mut pool_state = self.state.lock();
        let mut actions = pool_state.event(self, key, event, now);
        actions.append(pool_state.dispatch(self, now, None));
        drop(pool_state);
        self.carry_out(actions);
    }

    /// Reports whether the instance's start waits for memory. Calls that may not wait do not wait
    /// for that.
    pub(crate) fn report_memory_wait(self: &Arc<Self>, key: Key, waits_for_memory: bool) {
        let mut pool_state = self.state.lock();
        let Some(entry) = pool_state.entries.get_mut(&key) else { return };
        entry.waits_for_memory = waits_for_memory;
        let actions = pool_state.dispatch(self, self.context.now(), None);
        drop(pool_state);
        self.carry_out(actions);
    }

    /// The instance's start succeeded.
    pub(crate) fn ready(self: &Arc<Self>, key: Key, phases: StartPhases) {
        let now = self.context.now();
        let mut pool_state = self.state.lock();
        pool_state.failure = None;
        pool_state.no_start_before = None;
        pool_state.uses.instances += 1;
        self.history.started(&phases);
        let mut actions = pool_state.event(self, key, Event::Healthy, now);
        if let Some(entry) = pool_state.entries.get_mut(&key) {
            entry.ready_at = Some(now);
        }
        actions.append(pool_state.dispatch(self, now, Some((key, phases))));
        drop(pool_state);
        self.carry_out(actions);
        self.pulse.send_replace(());
    }

    /// The instance's start failed. Returns whether the failure differs from the one before.
    pub(crate) fn start_failed(self: &Arc<Self>, key: Key, failure: StartFailure) -> bool {
        let now = self.context.now();
        let mut pool_state = self.state.lock();
        let is_new =
            pool_state.failure.as_ref().is_none_or(|remembered| remembered.failure != failure);
        let mut actions = pool_state.event(self, key, Event::Kill(StopReason::NeverReady), now);
        if matches!(failure, StartFailure::Init(_)) {
            self.history.ended_badly(now, true);
        }
        if failure != StartFailure::Cancelled {
            pool_state.remember(&failure, now);
            if pool_state.live() + pool_state.starting() == 0 {
                for waiter in pool_state.waiters.drain(..) {
                    actions.failures.push((waiter.to, NoSlot::Start(failure.clone())));
                }
            }
        }
        actions.append(pool_state.dispatch(self, now, None));
        drop(pool_state);
        self.carry_out(actions);
        self.pulse.send_replace(());
        is_new
    }

    /// The container exited by itself; `is_known`: the engine knows the exit status. Returns the
    /// calls that ran in it.
    pub(crate) fn exited(self: &Arc<Self>, key: Key, is_known: bool) -> Vec<RequestId> {
        let calls = self.calls(key);
        let now = self.context.now();
        let mut pool_state = self.state.lock();
        if is_known {
            let is_early = pool_state.entries.get(&key).is_some_and(Entry::is_early);
            self.history.ended_badly(now, is_early);
        }
        pool_state.crashed(key, now);
        drop(pool_state);
        self.event(key, Event::Exited);
        calls
    }

    /// Why the instance is stopping; [`StopReason::Crashed`]: a call found it dead.
    pub(crate) fn why_stopping(&self, key: Key) -> Option<StopReason> {
        match self.state.lock().entries.get(&key)?.state {
            State::Stopping { why } | State::Gone { why } => Some(why),
            State::Starting | State::Idle { .. } | State::Busy { .. } | State::Draining { .. } => {
                None
            }
        }
    }

    /// The container is removed.
    pub(crate) fn gone(self: &Arc<Self>, key: Key) {
        let now = self.context.now();
        let mut pool_state = self.state.lock();
        if let Some(entry) = pool_state.entries.remove(&key) {
            pool_state.calls_ended(self, entry.calls.len(), now);
        }
        pool_state.available.retain(|other| *other != key);
        let actions = pool_state.dispatch(self, now, None);
        let is_removable = pool_state.is_removable(self, now);
        drop(pool_state);
        self.carry_out(actions);
        self.pulse.send_replace(());
        if is_removable {
            self.host.forget(self);
        }
    }

    /// Applies the instance's timers; returns when to check them again.
    pub(crate) fn tick(self: &Arc<Self>, key: Key) -> TimerCheck {
        let now = self.context.now();
        let mut pool_state = self.state.lock();
        let idle = pool_state.idle(self, key);
        let is_spare = pool_state.live() > pool_state.min_live(self);
        let mut actions =
            pool_state.event(self, key, Event::Tick { idle: is_spare.then_some(idle) }, now);
        let frozen =
            pool_state.entries.get(&key).map_or(Freeze::Never, |entry| self.freeze(entry, now));
        let next_check = match pool_state.entries.get(&key).map(|entry| entry.state) {
            Some(State::Idle { since }) if is_spare => since + idle,
            // An instance that becomes idle later has its whole idle time ahead, which may have
            // changed by then.
            Some(State::Idle { .. } | State::Busy { .. }) => {
                now + idle.min(self.context.config.keep.default)
            }
            Some(State::Draining { kill_at, .. }) => kill_at,
            Some(State::Starting | State::Stopping { .. } | State::Gone { .. }) | None => {
                now + LONGEST_CHECK
            }
        };
        if !actions.stops.is_empty() {
            actions.append(pool_state.dispatch(self, now, None));
        }
        let next_check = match frozen {
            Freeze::At(then) => next_check.min(then),
            Freeze::Never | Freeze::NeedsFreezer => next_check,
        };
        drop(pool_state);
        self.carry_out(actions);
        TimerCheck {
            at: Instant::now()
                + next_check.saturating_sub(now).clamp(SHORTEST_CHECK, LONGEST_CHECK),
            needs_freezer: frozen == Freeze::NeedsFreezer,
        }
    }

    /// Freezes an instance that was idle for long enough, where its function allows it.
    fn freeze(&self, entry: &Entry, now: Moment) -> Freeze {
        let Some(after) = self.freeze_after else { return Freeze::Never };
        let since = match entry.state {
            State::Idle { since } => since,
            State::Busy { .. } => now, // it may become idle without an event
            State::Starting
            | State::Draining { .. }
            | State::Stopping { .. }
            | State::Gone { .. } => {
                return Freeze::Never;
            }
        };
        if entry.instance.is_frozen() {
            return Freeze::Never;
        }
        if now < since + after {
            return Freeze::At(since + after);
        }
        if !entry.instance.knows_freezer() {
            return Freeze::NeedsFreezer;
        }
        entry.instance.freeze();
        Freeze::Never
    }

    /// Signalled for each start that ended and each call that begins to wait.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.pulse.subscribe()
    }

    pub(crate) fn has_waiting_calls(&self) -> bool {
        !self.state.lock().waiters.is_empty()
    }

    /// Whether a start in progress still has a call to serve, or a minimum to reach.
    pub(crate) fn is_start_needed(&self) -> bool {
        let pool_state = self.state.lock();
        let others = pool_state.starting().saturating_sub(1);
        pool_state.waiters.len() > others as usize * self.concurrency()
            || pool_state.live() + others < pool_state.min_live(self)
            || pool_state
                .entries
                .values()
                .any(|entry| entry.is_prewarming() && !entry.waits_for_memory)
    }

    /// Whether the start in progress is only a prewarm: no other instance is evicted for it.
    pub(crate) fn is_prewarm_only(&self) -> bool {
        let pool_state = self.state.lock();
        pool_state.waiters.is_empty()
            && pool_state.live() >= pool_state.min_live(self)
            && pool_state.entries.values().any(Entry::is_prewarming)
    }

    /// Whether instances of the function end so often that it has to boot its own cells.
    pub(crate) fn is_crash_looping(&self) -> bool {
        self.history.is_crash_looping(self.context.now())
    }

    /// Whether they end before they have served much.
    pub(crate) fn crashes_early(&self) -> bool {
        self.history.crashes_early(self.context.now())
    }

    /// Whether one more instance fits without an eviction, except of unassigned cells.
    fn has_memory(&self) -> bool {
        self.context.budget.shortage(self.version.spec.memory) <= self.cells.spare_bytes()
    }

    /// The keep-alive decision for idle instances, and when the last call of the function ended if
    /// none runs.
    fn choice(&self) -> (Choice, Option<Moment>) {
        let settings = &self.context.config.keep;
        match self.version.spec.idle_timeout {
            Some(idle) => (Choice { idle, ready: None, why: policy::Reason::Set }, None),
            None if self.policy.one_call => {
                let idle = settings.default;
                (Choice { idle, ready: None, why: policy::Reason::OneCall }, None)
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
    pub(crate) fn start_prewarm(self: &Arc<Self>) -> bool {
        let now = self.context.now();
        let Some((from, until)) = self.expected() else { return false };
        if now < from || now >= until || !self.has_memory() {
            return false;
        }
        let mut pool_state = self.state.lock();
        let actions = pool_state.start_prewarm(self, now, until);
        drop(pool_state);
        let starts = !actions.starts.is_empty();
        if starts {
            self.context.metrics.prewarms.inc();
        }
        self.carry_out(actions);
        starts
    }

    /// The keep-alive decision for listings; `None` if there is nothing to show.
    pub(crate) fn keep_alive(&self) -> Option<Keep> {
        let (Choice { idle, ready, why }, _) = self.choice();
        if why == policy::Reason::OneCall || matches!(why, policy::Reason::TooFew { samples: 0 }) {
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
    pub(crate) fn note_uses(&self, clock: EvictionClock) -> f64 {
        let Uses { calls, instances } = std::mem::take(&mut self.state.lock().uses);
        let now = self.context.now();
        let mut value = self.value.lock();
        if calls + instances > 0 {
            value.rate.add(calls, now);
            value.clock = clock.now();
        }
        value.rate.at(now)
    }

    /// The version is to be served: at least one instance now, `minInstances` from now on.
    pub(crate) async fn ensure_ready(self: &Arc<Self>) -> Result<(), VmError> {
        let spec = &self.version.spec;
        let want = spec.min_instances.clamp(1, spec.max_instances.get());
        let mut pulse = self.pulse.subscribe();
        let seen = {
            let mut pool_state = self.state.lock();
            pool_state.wanted = true;
            pool_state.closing = self.context.is_draining();
            pool_state.ready_waiters += 1;
            // An explicit request: try again at once.
            pool_state.failure = None;
            pool_state.no_start_before = None;
            pool_state.crash_backoff = None;
            pool_state.failures
        };
        let _request = ReadyRequest(self);
        loop {
            let actions = {
                let mut pool_state = self.state.lock();
                if pool_state.live() >= want {
                    return Ok(());
                }
                if pool_state.closing || self.context.closed.is_cancelled() {
                    return Err(StartFailure::Cancelled.to_error(&self.version.function));
                }
                // A start failed since this request began, and no other one is in progress.
                if pool_state.failures != seen && pool_state.starting() == 0 {
                    let failure =
                        pool_state.failure.as_ref().map(|remembered| remembered.failure.clone());
                    let failure = failure.unwrap_or(StartFailure::Cancelled);
                    return Err(failure.to_error(&self.version.function));
                }
                pool_state.dispatch(self, self.context.now(), None)
            };
            self.carry_out(actions);
            let limit = self.context.config.pull_timeout + 2 * self.context.config.start_timeout;
            if tokio::time::timeout(limit, pulse.changed()).await.is_err() {
                let cause = format!("no instance became ready within {limit:?}");
                return Err(StartFailure::NoCapacity(cause).to_error(&self.version.function));
            }
        }
    }

    /// Starts what the minimum and the waiting calls need: called on timers.
    pub(crate) fn ensure(self: &Arc<Self>) {
        let now = self.context.now();
        let mut pool_state = self.state.lock();
        let actions = pool_state.dispatch(self, now, None);
        let is_removable = pool_state.is_removable(self, now);
        drop(pool_state);
        self.carry_out(actions);
        if is_removable {
            self.host.forget(self);
        }
    }

    /// Stops every instance once it has no call; running and waiting calls end normally. `wanted`:
    /// the pool is only closed for a drain of the VM and may be opened again.
    pub(crate) fn close(self: &Arc<Self>, wanted: bool) {
        {
            let mut pool_state = self.state.lock();
            pool_state.closing = true;
            pool_state.wanted &= wanted;
        }
        self.ensure();
        self.pulse.send_replace(());
    }

    /// Reverts [`Pool::close`].
    pub(crate) fn open(self: &Arc<Self>) {
        self.state.lock().closing = false;
        self.ensure();
    }

    /// Kills all instances, with or without calls; waiting calls get an error.
    pub(crate) fn kill_all(self: &Arc<Self>) {
        let (keys, waiters) = {
            let mut pool_state = self.state.lock();
            let keys: Vec<Key> = pool_state.entries.keys().copied().collect();
            (keys, std::mem::take(&mut pool_state.waiters))
        };
        for waiter in waiters {
            drop(waiter.to.send(Err(NoSlot::Start(StartFailure::Cancelled))));
        }
        for key in keys {
            self.event(key, Event::Kill(StopReason::Requested));
        }
    }

    /// Adds an instance that was found running. Its version counts as wanted only once the gateway
    /// asks for it.
    pub(crate) fn adopt(self: &Arc<Self>, instance: Arc<Instance>) -> Key {
        let mut pool_state = self.state.lock();
        let key = pool_state.next_number();
        let state = State::Idle { since: self.context.now() };
        pool_state.entries.insert(key, Entry::new(instance, state));
        pool_state.uses.instances += 1;
        pool_state.update_available(key, self.concurrency());
        key
    }

    /// Idle instances that may be evicted for another version, and the value of each.
    pub(crate) fn evictable(&self, clock: EvictionClock) -> Vec<Evictable> {
        let rate = self.note_uses(clock);
        let start = self.history.start_cost();
        let memory = self.version.spec.memory.get();
        let used_at = self.value.lock().clock;
        let pool_state = self.state.lock();
        let spare = pool_state.live().saturating_sub(pool_state.min_live(self)) as usize;
        let mut idle: Vec<_> = pool_state
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
        let busy = pool_state.live().saturating_sub(idle.len() as u32);
        let ranked = idle.iter().rev().zip(busy + 1..).map(|(&(since, key), rank)| {
            let priority = used_at + cost::value(rate, start, memory, rank);
            Evictable { key, since, priority }
        });
        let mut ranked: Vec<_> = ranked.collect();
        ranked.reverse(); // idle longest first
        ranked.truncate(spare);
        ranked
    }

    /// Stops an instance to free its memory for another version, if it is still idle.
    pub(crate) fn evict(self: &Arc<Self>, key: Key) -> bool {
        let mut pool_state = self.state.lock();
        let idle = pool_state
            .entries
            .get(&key)
            .is_some_and(|entry| matches!(entry.state, State::Idle { .. }));
        if idle {
            let actions =
                pool_state.event(self, key, Event::Stop(StopReason::Evicted), self.context.now());
            drop(pool_state);
            self.carry_out(actions);
        }
        idle
    }

    /// Calls that hold a slot in the instance.
    pub(crate) fn calls(&self, key: Key) -> Vec<RequestId> {
        let pool_state = self.state.lock();
        let calls = pool_state.entries.get(&key).into_iter().flat_map(|entry| &entry.calls);
        calls.map(|(_, request_id)| request_id.clone()).collect()
    }

    /// Number of running calls and of waiting calls.
    pub(crate) fn load(&self) -> (u32, u32) {
        let pool_state = self.state.lock();
        let active = pool_state.entries.values().map(|entry| entry.calls.len()).sum::<usize>();
        (active as u32, pool_state.waiters.len() as u32)
    }

    pub(crate) fn statuses(&self) -> Vec<InstanceStatus> {
        let pool_state = self.state.lock();
        let status = |entry: &Entry| InstanceStatus {
            id: entry.instance.id().clone(),
            function: self.version.function.clone(),
            version: self.version.number,
            state: entry.state.reported(),
            calls_active: entry.state.active(),
            concurrency: self.version.spec.concurrency.get(),
            started_at: entry.instance.requested_at,
        };
        pool_state.entries.values().map(status).collect()
    }

    fn lease(self: &Arc<Self>, slot: Slot) -> Lease {
        Lease::new(Arc::clone(self), slot.instance, slot.key, slot.call)
    }

    fn carry_out(self: &Arc<Self>, actions: Actions) {
        for instance in actions.stops {
            instance.begin_stop();
        }
        for instance in actions.changed {
            instance.changed.notify_one();
        }
        for (to, slot, started) in actions.slots {
            // A call that was cancelled in this moment drops the lease, which frees the slot.
            drop(to.send(Ok(QueuedLease { lease: self.lease(slot), started })));
        }
        for (to, why) in actions.failures {
            drop(to.send(Err(why)));
        }
        for (key, instance) in actions.starts {
            self.host.start_instance(self, key, instance);
        }
    }
}

/// Ends the request of one `ensure_ready`.
struct ReadyRequest<'a>(&'a Arc<Pool>);

impl Drop for ReadyRequest<'_> {
    fn drop(&mut self) {
        self.0.state.lock().ready_waiters -= 1;
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("version", &self.version.id()).finish_non_exhaustive()
    }
}
