//! The instances of one version, and the calls that wait for a slot in one. The agent's only shared
//! state on the path of a call: one short lock, never held across an await. Decides nothing:
//! `pool/state.rs` is a state machine without clock, engine or lock, which returns what follows
//! from a change (a hand-over, a start, a kill); `pool/change.rs` carries that out after the lock
//! is released.
//!
//! Rules, each under test in `pool/state/tests` and `tests/agent`:
//! - A free slot is given at once, in the instance used last. Else the call waits, first come first
//!   served, for the slot that frees first, of an existing instance or of a new one.
//! - No more starts than waiting calls need, and within `maxInstances` and the starts per version.
//! - A start that fails fails the waiting calls, once nothing else could serve them; a failure of
//!   the code is remembered for a time that doubles, so that broken code is not started for each
//!   call.

mod actions;
mod change;
mod eviction;
mod host;
mod keep_alive;
mod readiness;
mod rules;
mod slot;
mod state;
mod views;

use super::Instance;
use super::state::Event;
use crate::cell::Cells;
use crate::container::failure::StartFailure;
use crate::context::VmContext;
use crate::keepalive::history::History;
use crate::moment::Moment;
pub(crate) use actions::NoSlot;
use change::Locked;
use epsilon_api::{error::VmError, function::Version, ids::RequestId, vm::StartPhases};
pub(crate) use eviction::Evictable;
use eviction::EvictionValue;
pub(crate) use host::PoolHost;
use http::HeaderValue;
use parking_lot::Mutex;
use rules::Rules;
use slot::Reply;
pub(crate) use slot::{Admission, HeldSlot, QueuedSlot, Waiting};
use state::{Check, Freeze, Freezer, PoolState, Refusal};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

/// An instance's key in its pool; never reused.
pub(crate) type Key = u64;

/// Shortest pause between two checks of an instance's timers.
const SHORTEST_CHECK: Duration = Duration::from_millis(10);
/// Longest pause: an instance without timers is checked all the same, in case its state changes.
const LONGEST_CHECK: Duration = Duration::from_secs(3600);

pub(crate) struct Pool {
    pub(crate) version: Arc<Version>,
    /// Value of every call's deadline header at hand-over: the whole timeout.
    pub(crate) deadline_ms: HeaderValue,
    pub(crate) context: Arc<VmContext>,
    cells: Arc<Cells>,
    pub(crate) host: Arc<dyn PoolHost>,
    /// `isolation: call`.
    is_one_call: bool,
    /// Most slots that the version may have.
    limit: u32,
    /// The function's history, of all its versions.
    history: Arc<History>,
    locked: Mutex<Locked>,
    value: Mutex<EvictionValue>,
    /// Signals that an instance became ready, failed or was removed, or that a call began to wait.
    pulse: watch::Sender<()>,
}

/// Result of checking an instance's timers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimerCheck {
    /// When to check again.
    pub(crate) at: Instant,
    /// It is to be frozen, and its freezer was not looked up yet.
    pub(crate) needs_freezer: bool,
}

impl Pool {
    pub(crate) fn new(
        context: Arc<VmContext>,
        cells: Arc<Cells>,
        host: Arc<dyn PoolHost>,
        version: Arc<Version>,
    ) -> Arc<Self> {
        let spec = &version.spec;
        let rules = Rules::new(spec, &context.config);
        let concurrency = u32::try_from(rules.concurrency).unwrap_or(u32::MAX);
        let deadline_ms = u64::try_from(spec.timeout.as_millis()).unwrap_or(u64::MAX);
        Arc::new(Self {
            deadline_ms: HeaderValue::from(deadline_ms),
            is_one_call: rules.policy.one_call,
            limit: rules.max_instances.saturating_mul(concurrency),
            history: context.histories.of(&version.function),
            locked: Mutex::new(Locked::new(rules)),
            value: Mutex::default(),
            pulse: watch::Sender::new(()),
            version,
            context,
            cells,
            host,
        })
    }

    /// Logs a warning about one of the pool's instances in the agent's own log.
    pub(crate) fn warn(&self, instance: &Instance, what: &'static str, cause: Option<&str>) {
        self.history.warnings.log(instance, what, cause);
    }

    /// The error for a call that got no slot.
    pub(crate) fn busy(&self) -> VmError {
        VmError::ConcurrencyLimit { function: self.version.function.clone(), limit: self.limit }
    }

    /// A slot for one call: now, or as soon as one is free. A call that may not wait gets a slot of
    /// a start in progress, or none.
    pub(crate) fn take(
        self: &Arc<Self>,
        request_id: &RequestId,
        may_wait: bool,
    ) -> Result<Admission, VmError> {
        let mut locked = self.locked.lock();
        if let Some(slot) = locked.state.begin(request_id)
            && let Some(instance) = locked.instances.get(&slot.key).cloned()
        {
            self.note_begun(slot);
            drop(locked);
            return Ok(Admission::Now(HeldSlot::new(self, instance, slot)));
        }
        // An instance that starts now would be killed at once, and started again for this call.
        if self.context.closed.is_cancelled() {
            return Err(StartFailure::Cancelled.to_error(&self.version.function));
        }
        let now = self.context.now();
        // The function's pause ends here, not when the start is done.
        if locked.state.running() == 0 {
            self.history.call_arrived(now);
        }
        match locked.state.admit(now) {
            Ok(()) => {}
            Err(Refusal::Failed(failure)) => return Err(failure.to_error(&self.version.function)),
            Err(Refusal::QueueFull) => return Err(self.busy()),
        }
        let (to, slot) = oneshot::channel();
        let (ticket, actions) = locked.state.enqueue(request_id, may_wait, to, now);
        self.carry_out(locked, actions, now);
        self.pulse.send_replace(());
        Ok(Admission::Later(Waiting { pool: Arc::clone(self), ticket, slot }))
    }

    /// One call ended; its slot is free again, or its instance has to stop.
    fn end(self: &Arc<Self>, key: Key, call: u64, how: Event) {
        self.change(|state, now| state.end(key, call, how, now));
    }

    /// An event of an instance that does not end one call.
    pub(crate) fn event(self: &Arc<Self>, key: Key, event: Event) {
        self.change(|state, now| state.event(key, event, now));
    }

    /// Reports whether the instance's start waits for memory. Calls that may not wait do not wait
    /// for that.
    pub(crate) fn report_memory_wait(self: &Arc<Self>, key: Key, waits_for_memory: bool) {
        self.change(|state, now| state.report_memory_wait(key, waits_for_memory, now));
    }

    /// The instance's start succeeded.
    pub(crate) fn ready(self: &Arc<Self>, key: Key, phases: StartPhases) {
        self.history.started(&phases);
        self.change(|state, now| state.ready(key, phases, now));
        self.pulse.send_replace(());
    }

    /// The instance's start failed. Returns whether the failure differs from the one before.
    pub(crate) fn start_failed(self: &Arc<Self>, key: Key, failure: &StartFailure) -> bool {
        let now = self.context.now();
        let mut locked = self.locked.lock();
        let (actions, is_new) = locked.state.start_failed(key, failure, now);
        self.carry_out(locked, actions, now);
        self.pulse.send_replace(());
        is_new
    }

    /// The container exited by itself; `is_known`: the engine knows the exit status. Returns the
    /// calls that ran in it.
    pub(crate) fn exited(self: &Arc<Self>, key: Key, is_known: bool) -> Vec<RequestId> {
        let now = self.context.now();
        let mut locked = self.locked.lock();
        let (actions, calls) = locked.state.exited(key, is_known, now);
        self.carry_out(locked, actions, now);
        calls
    }

    /// The container is removed.
    pub(crate) fn gone(self: &Arc<Self>, key: Key) {
        let now = self.context.now();
        let mut locked = self.locked.lock();
        let actions = locked.state.gone(key, now);
        let instance = locked.instances.remove(&key);
        let is_removable = self.is_removable(&locked.state, now);
        self.carry_out(locked, actions, now);
        drop(instance);
        self.pulse.send_replace(());
        if is_removable {
            self.host.forget(self);
        }
    }

    /// Applies the instance's timers; returns when to check them again.
    pub(crate) fn tick(self: &Arc<Self>, key: Key) -> TimerCheck {
        let now = self.context.now();
        let (choice, _) = self.choice();
        let mut locked = self.locked.lock();
        let instance = locked.instances.get(&key).cloned();
        let freezer = match &instance {
            Some(instance) if instance.is_frozen() => Freezer::Applied,
            Some(instance) if instance.knows_freezer() => Freezer::Found,
            Some(_) | None => Freezer::Unknown,
        };
        let Check { actions, next, freeze } = locked.state.tick(key, &choice, freezer, now);
        if freeze == Freeze::Now
            && let Some(instance) = &instance
        {
            instance.freeze(); // under the lock, so that no call begins at the same time
        }
        self.carry_out(locked, actions, now);
        let pause = next.map_or(LONGEST_CHECK, |next| next.saturating_sub(now));
        TimerCheck {
            at: Instant::now() + pause.clamp(SHORTEST_CHECK, LONGEST_CHECK),
            needs_freezer: freeze == Freeze::LookUpFreezer,
        }
    }

    /// Starts what the minimum and the waiting calls need: called on timers.
    pub(crate) fn start_what_is_needed(self: &Arc<Self>) {
        self.change_and_forget(PoolState::start_what_is_needed);
    }

    /// Stops every instance once it has no call; running and waiting calls end normally. `wanted`:
    /// the pool is only closed for a drain of the VM and may be opened again.
    pub(crate) fn close(self: &Arc<Self>, wanted: bool) {
        self.change_and_forget(|state, now| state.close(wanted, now));
        self.pulse.send_replace(());
    }

    /// Reverts [`Pool::close`].
    pub(crate) fn open(self: &Arc<Self>) {
        self.change_and_forget(PoolState::open);
    }

    /// The agent ends: kills all instances, with or without calls; waiting calls get an error.
    pub(crate) fn kill_all(self: &Arc<Self>) {
        self.change(PoolState::kill_all);
    }

    /// Adds an instance that was found running. Its version counts as wanted only once the gateway
    /// asks for it.
    pub(crate) fn adopt(self: &Arc<Self>, instance: Arc<Instance>) -> Key {
        let mut locked = self.locked.lock();
        let key = locked.state.adopt(self.context.now());
        locked.instances.insert(key, instance);
        key
    }

    /// Whether the pool is empty, and no expected call and no remembered failure needs it.
    fn is_removable(&self, state: &PoolState<Reply>, now: Moment) -> bool {
        state.is_unused(now) && (state.is_closing() || !self.expects_call(now))
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("version", &self.version.id()).finish_non_exhaustive()
    }
}
