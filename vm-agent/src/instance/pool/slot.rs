//! The slots that calls hold, and their wait for one. A slot knows nothing of the call's phases;
//! `instance/lease.rs` adds those.

use super::{Key, NoSlot, Pool, actions::Slot};
use crate::instance::{Instance, state::Event};
use epsilon_api::{ids::RequestId, vm::StartPhases};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Sends a waiting call its slot, or the reason why it gets none.
pub(super) type Reply = oneshot::Sender<Result<QueuedSlot, NoSlot>>;

/// One slot in one instance. It is free again when it ends; a dropped one ends as an ended call.
#[derive(Debug)]
pub(crate) struct HeldSlot {
    pub(crate) pool: Arc<Pool>,
    pub(crate) instance: Arc<Instance>,
    key: Key,
    call: u64,
    /// It was given back, or belongs to another value.
    is_over: bool,
}

impl HeldSlot {
    /// Called without the pool's lock: a frozen instance is thawed here. It has a call, so it is
    /// not frozen again.
    pub(super) fn new(pool: &Arc<Pool>, instance: Arc<Instance>, slot: Slot) -> Self {
        instance.thaw();
        let pool = Arc::clone(pool);
        Self { pool, instance, key: slot.key, call: slot.call, is_over: false }
    }

    /// Gives the slot back; `how`: how its call ended.
    pub(crate) fn end(&mut self, how: Event) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.pool.end(self.key, self.call, how);
        }
    }

    /// An event of the instance that does not end this call.
    pub(crate) fn event(&self, event: Event) {
        self.pool.event(self.key, event);
    }

    /// Leaves the call among those of its instance, which is ending.
    pub(crate) fn leave(&mut self) {
        self.is_over = true;
    }

    /// Moves the slot out.
    pub(crate) fn take(&mut self) -> Self {
        let is_over = std::mem::replace(&mut self.is_over, true);
        Self {
            pool: Arc::clone(&self.pool),
            instance: Arc::clone(&self.instance),
            key: self.key,
            call: self.call,
            is_over,
        }
    }

    /// Calls that hold a slot in the same instance, this one included.
    pub(crate) fn calls_in_instance(&self) -> Vec<RequestId> {
        self.pool.calls(self.key)
    }
}

impl Drop for HeldSlot {
    fn drop(&mut self) {
        self.end(Event::CallEnded);
    }
}

/// A slot, with the phases of the start that the call waited for.
#[derive(Debug)]
pub(crate) struct QueuedSlot {
    pub(crate) slot: HeldSlot,
    pub(crate) started: Option<StartPhases>,
}

/// What a call gets from its pool.
pub(crate) enum Admission {
    Now(HeldSlot),
    Later(Waiting),
}

/// A call in the queue. Dropping it leaves the queue.
pub(crate) struct Waiting {
    pub(super) pool: Arc<Pool>,
    pub(super) ticket: u64,
    pub(crate) slot: oneshot::Receiver<Result<QueuedSlot, NoSlot>>,
}

impl Waiting {
    /// Whether a start in progress is going to serve this call.
    pub(crate) fn is_start_coming(&self) -> bool {
        self.pool.locked.lock().state.is_start_coming(self.ticket)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.pool.locked.lock().state.cancel(self.ticket);
        // A slot that was sent meanwhile is freed when the channel is dropped, after this.
    }
}
