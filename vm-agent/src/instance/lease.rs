//! The right to send one call to one instance, and how a call gets it: at once, or by waiting in
//! the queue of its version.
//!
//! A dropped lease decides by its phase what happens to its slot. Not handed over yet: the slot is
//! free. Running: the caller disconnected, or the handler outlasts its answer; `abandoned.rs` takes
//! over. Over: nothing is left to do.

pub(crate) mod abandoned;

use crate::instance::{
    Instance,
    pool::{Admission, HeldSlot, NoSlot, Pool, QueuedSlot},
    state::{Event, StopReason},
};
use epsilon_api::{
    body::BodyProgress, error::VmError, function::Runtime, ids::RequestId, log::Level, vm::Spent,
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout, timeout_at};

/// How often a waiting call checks whether an instance can be started by now: memory that was short
/// when the call arrived may be free, and nothing else would trigger the start.
const RECHECK_PAUSE: Duration = Duration::from_millis(500);
/// How long code may run past its deadline when the caller is to blame: its connection was closed,
/// and most handlers end with that.
const CLOSE_GRACE: Duration = Duration::from_secs(3);

/// One slot in one instance.
#[derive(Debug)]
pub(crate) struct Lease {
    slot: HeldSlot,
    phase: Phase,
    /// Progress of the request's body, if it was not complete at the start.
    pub(crate) upload: Option<BodyProgress>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// The call was not sent to the instance yet.
    Placed,
    /// The instance may be executing it.
    Running { deadline: Instant, request_id: RequestId, exchange: Exchange },
    /// The slot was given back.
    Over,
}

/// State of the HTTP exchange with the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exchange {
    /// In progress. If the lease is dropped now, the caller has disconnected.
    Open,
    /// The instance closed the connection and may be dying.
    Broken,
    /// The answer was read to its end; the handler still runs.
    Answered,
}

/// Which side let a call reach its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeadlineFault {
    Caller,
    Function,
}

/// Waits for a slot within the operator's `queue_wait`; a call for which an instance is starting
/// waits until that start ends, which has a limit of its own. The pool refuses a call that may not
/// wait as soon as no start in progress would serve it.
pub(crate) async fn take(
    pool: &Arc<Pool>,
    request_id: &RequestId,
    may_wait: bool,
    spent: &mut Spent,
) -> Result<Lease, VmError> {
    let mut waiting = match pool.take(request_id, may_wait)? {
        Admission::Now(slot) => return Ok(Lease::new(slot)),
        Admission::Later(waiting) => waiting,
    };
    let began = Instant::now();
    let give_up = began + pool.context.config.queue_wait;
    let outcome = loop {
        let next_check = give_up.min(Instant::now() + RECHECK_PAUSE);
        match timeout_at(next_check, &mut waiting.slot).await {
            Ok(outcome) => break outcome,
            Err(_) if Instant::now() < give_up => pool.start_what_is_needed(),
            // The start ends within limits of its own, and this wait ends with it.
            Err(_) if waiting.is_start_coming() => {
                if let Ok(outcome) = timeout(RECHECK_PAUSE, &mut waiting.slot).await {
                    break outcome;
                }
            }
            Err(_) => {
                drop(waiting);
                pool.context.metrics.queue_wait.observe(began.elapsed().as_secs_f64());
                return Err(pool.busy());
            }
        }
    };
    let waited = began.elapsed();
    pool.context.metrics.queue_wait.observe(waited.as_secs_f64());
    match outcome {
        Ok(Ok(QueuedSlot { slot, started })) => {
            let start = started.map_or_else(Default::default, |phases| phases.total());
            spent.queue += waited.saturating_sub(start);
            spent.start = started.or(spent.start);
            Ok(Lease::new(slot))
        }
        Ok(Err(NoSlot::Start(failure))) => Err(failure.to_error(&pool.version.function)),
        Ok(Err(NoSlot::Busy)) => Err(pool.busy()),
        Err(_) => Err(VmError::Internal("the queue of a version was lost".into())),
    }
}

impl Lease {
    fn new(slot: HeldSlot) -> Self {
        Self { slot, phase: Phase::Placed, upload: None }
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.slot.pool
    }

    pub(crate) fn instance(&self) -> &Arc<Instance> {
        &self.slot.instance
    }

    /// The call is about to be sent: its `timeout` starts now.
    pub(crate) fn hand_over(&mut self, request_id: &RequestId) -> Instant {
        let deadline = Instant::now() + self.slot.pool.version.spec.timeout;
        let request_id = request_id.clone();
        let exchange = Exchange::Open;
        self.phase = Phase::Running { deadline, request_id, exchange };
        deadline
    }

    pub(crate) fn deadline(&self) -> Instant {
        match self.phase {
            Phase::Running { deadline, .. } => deadline,
            Phase::Placed | Phase::Over => Instant::now(),
        }
    }

    /// The instance broke the exchange off: it is probed before its slot is given to another call.
    pub(crate) fn mark_broken(&mut self) {
        if let Phase::Running { exchange, .. } = &mut self.phase {
            *exchange = Exchange::Broken;
        }
    }

    /// Nothing of the call was sent after all.
    pub(crate) fn mark_unsent(&mut self) {
        self.phase = Phase::Placed;
    }

    /// The last byte of the answer was read. The call ends with it, unless the wrapper reports that
    /// the handler, or a promise given to `ctx.waitUntil`, still runs: then the slot stays taken
    /// until that ends too. Returns whether the call is over.
    pub(crate) fn answered(mut self) -> bool {
        match &mut self.phase {
            Phase::Running { request_id, exchange, .. }
                if self.slot.instance.connections.is_unsettled(request_id) =>
            {
                *exchange = Exchange::Answered; // the drop starts `settle`
                false
            }
            _ => {
                self.finish();
                true
            }
        }
    }

    /// Work that runs after the answer is about to be cut, because its instance has to stop.
    pub(crate) fn cut(self) {
        if let Phase::Running { request_id, exchange: Exchange::Answered, .. } = &self.phase {
            let text = "work after the answer was stopped: its instance had to stop";
            self.log_event(Level::Warn, request_id.clone(), text.to_owned());
        }
        self.finish();
    }

    /// The call ended, with all of its work.
    pub(crate) fn finish(mut self) {
        self.end(Event::CallEnded);
    }

    /// The call reached its deadline, and its exchange is closed. Returns which side is to blame:
    /// code that waited for the caller's bytes could not know more, so it only has to end now.
    pub(crate) fn expire(self) -> DeadlineFault {
        if self.upload.as_ref().is_some_and(BodyProgress::waits_for_caller) {
            self.release("the caller had not sent all of its body");
            return DeadlineFault::Caller;
        }
        self.kill();
        DeadlineFault::Function
    }

    /// The same for a call whose answer waited for the caller to read it.
    pub(crate) fn expire_unread(self) {
        self.release("the caller had not read all of the answer");
    }

    /// Gives the code a grace period to end; dropping the lease enforces it.
    fn release(mut self, why: &str) {
        if let Phase::Running { deadline, request_id, .. } = &mut self.phase {
            *deadline = (*deadline).max(Instant::now()) + CLOSE_GRACE;
            let timeout = humantime::format_duration(self.slot.pool.version.spec.timeout);
            let text = format!("the call was ended: {why} when its `timeout` of {timeout} ran out");
            let request_id = request_id.clone();
            self.log_event(Level::Warn, request_id, text);
        }
    }

    /// The code may run forever, so the instance is killed.
    pub(crate) fn kill(mut self) {
        if let Phase::Running { request_id, exchange, .. } = &self.phase {
            let what = match exchange {
                Exchange::Answered => "work after the answer",
                Exchange::Open | Exchange::Broken => "the call",
            };
            let timeout = humantime::format_duration(self.slot.pool.version.spec.timeout);
            let text = format!("{what} was stopped: the function's `timeout` of {timeout} ran out");
            self.log_event(Level::Error, request_id.clone(), text);
        }
        self.end(Event::CallTimedOut);
    }

    /// The instance does not accept connections and is killed. Nothing of this call was sent.
    pub(crate) fn instance_unreachable(mut self) {
        self.slot.event(Event::Kill(StopReason::Crashed));
        self.end(Event::CallEnded);
    }

    /// The instance died during this call, which stays among its calls for the crash report.
    pub(crate) fn instance_died(mut self) {
        self.phase = Phase::Over;
        self.slot.leave();
        self.slot.event(Event::Kill(StopReason::Crashed));
    }

    /// Number of calls that hold a slot in this instance, this one included.
    pub(crate) fn calls_in_instance(&self) -> usize {
        self.slot.calls_in_instance().len()
    }

    /// Whether the answer was read to its end already.
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self.phase, Phase::Running { exchange: Exchange::Answered, .. })
    }

    /// The call's id, while the instance may be executing it.
    pub(crate) fn request_id(&self) -> Option<&RequestId> {
        match &self.phase {
            Phase::Running { request_id, .. } => Some(request_id),
            Phase::Placed | Phase::Over => None,
        }
    }

    fn log_event(&self, level: Level, request_id: RequestId, text: String) {
        self.slot.pool.context.logs.event(
            &self.slot.instance.version,
            self.slot.instance.id(),
            level,
            Some(request_id),
            text,
        );
    }

    fn end(&mut self, how: Event) {
        self.phase = Phase::Over;
        self.slot.end(how);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            // The slot is over, or freed when it is dropped.
            Phase::Over | Phase::Placed => {}
            // A `runtime: container` image has no request for the state of a disconnected caller's
            // call.
            Phase::Running { exchange: Exchange::Open, .. }
                if self.slot.pool.version.spec.runtime == Runtime::Container =>
            {
                self.slot.end(Event::CallEnded);
            }
            running @ Phase::Running { .. } => {
                let lease = Self { slot: self.slot.take(), phase: running, upload: None };
                self.slot.pool.context.spawn(abandoned::settle(abandoned::Abandoned::new(lease)));
            }
        }
    }
}
