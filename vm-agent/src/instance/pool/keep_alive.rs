//! How long a pool's idle instances stay, and prewarms: by the function's own `idleTimeout`, else
//! by the pauses between its calls (`keepalive/policy.rs`).

use super::Pool;
use crate::keepalive::policy::{Choice, Reason};
use crate::moment::Moment;
use epsilon_api::vm::Keep;
use std::sync::Arc;

impl Pool {
    /// The keep-alive decision for idle instances, and when the last call of the function ended if
    /// none runs.
    pub(super) fn choice(&self) -> (Choice, Option<Moment>) {
        let settings = &self.context.config.keep;
        match self.version.spec.idle_timeout {
            Some(idle) => (Choice { idle, ready: None, why: Reason::Set }, None),
            None if self.is_one_call => {
                let idle = settings.default;
                (Choice { idle, ready: None, why: Reason::OneCall }, None)
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

    /// Whether a call is still expected.
    pub(super) fn expects_call(&self, now: Moment) -> bool {
        self.expected().is_some_and(|(_, until)| now < until)
    }

    /// Prewarms: starts an instance shortly before a call is expected, if there is none and memory
    /// is free. Called on a timer; returns whether it did.
    pub(crate) fn start_prewarm(self: &Arc<Self>) -> bool {
        let now = self.context.now();
        let Some((from, until)) = self.expected() else { return false };
        if now < from || now >= until || !self.has_memory() {
            return false;
        }
        let mut locked = self.locked.lock();
        let actions = locked.state.start_prewarm(until, now);
        let starts = !actions.starts.is_empty();
        self.carry_out(locked, actions, now);
        if starts {
            self.context.metrics.prewarms.inc();
        }
        starts
    }

    /// Whether one more instance fits without an eviction, except of unassigned cells.
    fn has_memory(&self) -> bool {
        self.context.budget.shortage(self.version.spec.memory) <= self.cells.spare_bytes()
    }

    /// The keep-alive decision for listings; `None` if there is nothing to show.
    pub(crate) fn keep_alive(&self) -> Option<Keep> {
        let (Choice { idle, ready, why }, _) = self.choice();
        if why == Reason::OneCall || matches!(why, Reason::TooFew { samples: 0 }) {
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
}
