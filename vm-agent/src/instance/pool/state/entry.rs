//! One instance in the state of its pool.

use crate::instance::state::State;
use crate::moment::Moment;
use epsilon_api::ids::RequestId;

/// Calls after which a start was worth its cost.
const MIN_SERVED: u64 = 10;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) state: State,
    /// Calls that hold a slot, by their number in the pool.
    pub(super) calls: Vec<(u64, RequestId)>,
    /// Number of calls that it served to their end.
    pub(super) served: u64,
    /// When it became ready; unknown for an adopted instance.
    pub(super) ready_at: Option<Moment>,
    /// Its start waits for memory.
    pub(super) waits_for_memory: bool,
    /// Set while it is prewarmed and no call has used it: when it stops if none does.
    pub(super) prewarmed_until: Option<Moment>,
}

impl Entry {
    pub(super) fn new(state: State) -> Self {
        Self {
            state,
            calls: Vec::new(),
            served: 0,
            ready_at: None,
            waits_for_memory: false,
            prewarmed_until: None,
        }
    }

    /// Whether its end counts as early. One that served calls does not count: a rare fault, or a
    /// caller who triggers it, must not slow down a function that others use.
    pub(super) fn is_early(&self) -> bool {
        self.served < MIN_SERVED
    }

    pub(super) fn is_starting(&self) -> bool {
        self.state == State::Starting
    }

    /// Whether it is a prewarm in progress.
    pub(super) fn is_prewarming(&self) -> bool {
        self.prewarmed_until.is_some() && self.is_starting()
    }
}
