//! What others read of a pool: the runner of a starting instance, the VM's status, evictions.
//! Changes nothing.

use super::{Key, Pool};
use crate::instance::state::{State, StopReason};
use epsilon_api::{ids::RequestId, vm::InstanceStatus};
use tokio::sync::watch;

impl Pool {
    /// Signalled for each start that ended and each call that begins to wait.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.pulse.subscribe()
    }

    pub(crate) fn has_waiting_calls(&self) -> bool {
        self.locked.lock().state.waiting() > 0
    }

    /// Whether a start in progress still has a call to serve, or a minimum to reach.
    pub(crate) fn is_start_needed(&self) -> bool {
        self.locked.lock().state.is_start_needed()
    }

    /// Whether the start in progress is only a prewarm: no other instance is evicted for it.
    pub(crate) fn is_prewarm_only(&self) -> bool {
        self.locked.lock().state.is_prewarm_only()
    }

    /// Whether instances of the function end so often that it has to boot its own cells.
    pub(crate) fn is_crash_looping(&self) -> bool {
        self.history.is_crash_looping(self.context.now())
    }

    /// Whether they end before they have served much.
    pub(crate) fn crashes_early(&self) -> bool {
        self.history.crashes_early(self.context.now())
    }

    /// Why the instance is stopping; [`StopReason::Crashed`]: a call found it dead.
    pub(crate) fn why_stopping(&self, key: Key) -> Option<StopReason> {
        self.locked.lock().state.why_stopping(key)
    }

    /// Calls that hold a slot in the instance.
    pub(crate) fn calls(&self, key: Key) -> Vec<RequestId> {
        self.locked.lock().state.calls(key)
    }

    /// Number of running calls and of waiting calls.
    pub(crate) fn load(&self) -> (u32, u32) {
        let locked = self.locked.lock();
        (locked.state.running(), locked.state.waiting() as u32)
    }

    pub(crate) fn statuses(&self) -> Vec<InstanceStatus> {
        let locked = self.locked.lock();
        let status = |(key, state): (Key, State)| {
            let instance = locked.instances.get(&key)?;
            Some(InstanceStatus {
                id: instance.id().clone(),
                function: self.version.function.clone(),
                version: self.version.number,
                state: state.reported(),
                calls_active: state.active(),
                concurrency: self.version.spec.concurrency.get(),
                started_at: instance.requested_at,
            })
        };
        locked.state.states().filter_map(status).collect()
    }
}
