//! The queue of a pool: calls that wait for a slot, first come first served.

use super::PoolState;
use crate::container::failure::StartFailure;
use crate::instance::pool::actions::Actions;
use crate::moment::Moment;
use epsilon_api::ids::RequestId;

pub(super) struct Waiter<W> {
    pub(super) ticket: u64,
    pub(super) request_id: RequestId,
    /// No other VM can take it.
    pub(super) may_wait: bool,
    pub(super) to: W,
}

/// Why a call may not enter the queue.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::instance::pool) enum Refusal {
    /// The code just failed; it is not started again for this call.
    Failed(StartFailure),
    QueueFull,
}

impl<W> PoolState<W> {
    /// Whether a call may enter the queue.
    pub(in crate::instance::pool) fn admit(&self, now: Moment) -> Result<(), Refusal> {
        if self.live() + self.starting() == 0
            && let Some(failure) = self.failures.of_code(now)
        {
            return Err(Refusal::Failed(failure.clone()));
        }
        if self.waiters.len() >= self.rules.queue_depth {
            return Err(Refusal::QueueFull);
        }
        Ok(())
    }

    /// Adds a call to the queue and starts what it needs. Returns its ticket.
    pub(in crate::instance::pool) fn enqueue(
        &mut self,
        request_id: &RequestId,
        may_wait: bool,
        to: W,
        now: Moment,
    ) -> (u64, Actions<W>) {
        let ticket = self.next_number();
        let request_id = request_id.clone();
        self.waiters.push_back(Waiter { ticket, request_id, may_wait, to });
        (ticket, self.start_what_is_needed(now))
    }

    /// A call leaves the queue, unless it was served meanwhile.
    pub(in crate::instance::pool) fn cancel(&mut self, ticket: u64) {
        if let Some(at) = self.position(ticket) {
            self.waiters.remove(at);
        }
    }

    /// Whether a start in progress is going to serve this waiting call.
    pub(in crate::instance::pool) fn is_start_coming(&self, ticket: u64) -> bool {
        let slots = self.starting() as usize * self.rules.concurrency;
        self.position(ticket).is_some_and(|at| at < slots)
    }

    fn position(&self, ticket: u64) -> Option<usize> {
        self.waiters.iter().position(|waiter| waiter.ticket == ticket)
    }
}
