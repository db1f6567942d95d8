//! What follows from a change of a pool's state, as data: the state (`state.rs`) returns it,
//! `pool.rs` carries it out.

use super::Key;
use crate::container::failure::StartFailure;
use epsilon_api::vm::StartPhases;

/// Why a waiting call gets no slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoSlot {
    /// The start that was to serve it failed.
    Start(StartFailure),
    /// It may not wait, and no start in progress would serve it.
    Busy,
}

/// A slot that a call got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) key: Key,
    /// The call's number in the pool.
    pub(super) call: u64,
    /// No other call of the version runs.
    pub(super) is_first: bool,
    /// The instance was prewarmed, and this is its first call.
    pub(super) was_prewarmed: bool,
}

/// What follows from one change. `W`: how a waiting call is answered.
#[derive(Debug)]
pub(super) struct Actions<W> {
    /// Calls that stop waiting; with the phases of the start that they waited for.
    pub(super) slots: Vec<(W, Slot, Option<StartPhases>)>,
    pub(super) failures: Vec<(W, NoSlot)>,
    /// Instances to start.
    pub(super) starts: Vec<Key>,
    /// Instances to kill.
    pub(super) stops: Vec<Key>,
    /// Instances whose timers are to be read again.
    pub(super) changed: Vec<Key>,
    /// For the function's history: the version's last running call ended. It did so before any of
    /// `slots` began.
    pub(super) has_last_call_ended: bool,
    /// For the function's history: an instance ended because of its code.
    pub(super) bad_end: Option<BadEnd>,
}

/// An instance that crashed, timed out or failed to load its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadEnd {
    /// Before it had served much.
    pub(super) is_early: bool,
}

impl<W> Default for Actions<W> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            failures: Vec::new(),
            starts: Vec::new(),
            stops: Vec::new(),
            changed: Vec::new(),
            has_last_call_ended: false,
            bad_end: None,
        }
    }
}
