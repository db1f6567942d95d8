//! The end of an instance in good order: SIGTERM, the function's `stopGrace` for its shutdown hooks, then whatever is left is
//! killed with its container. Called by `runner.rs` between the order to go and the removal; no call waits for it.

use super::Runner;
use crate::instance::{start::ExitWatch, state::Why};
use epsilon_api::{chain::Chain, log::Level};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Longest grace of an instance that goes because another one needs its memory: somebody waits for that, and how long
/// is not the evicted function's to say.
const EVICTED: Duration = Duration::from_secs(1);

impl Runner {
    /// Asks the process to end and waits for that within its grace.
    pub(super) async fn terminate(&self, exit: ExitWatch) {
        let grace = self.grace();
        if grace.is_zero() {
            return;
        }
        self.instance.thaw(); // stopped processes get no signal
        let asked = Instant::now();
        if let Err(err) = self.vm.engine.terminate(self.instance.container()).await {
            tracing::debug!(instance = %self.instance.id(), cause = %Chain(&err), "SIGTERM could not be sent to the instance.");
            return; // it ended before, or its engine is away
        }
        tokio::select! {
            // Both may be dropped: a watch, a timer.
            biased;
            _ = exit => self.instance.give_memory_back(),
            () = sleep_until(asked + grace) => {
                let grace = humantime::format_duration(grace);
                let text = format!("the instance did not end within {grace} of SIGTERM and was killed; `stopGrace` sets this time");
                self.vm.logs.event(&self.instance, Level::Warn, None, text);
            }
        }
    }

    fn grace(&self) -> Duration {
        let grace = self.instance.version.spec.stop_grace;
        match self.pool.why_stopping(self.key) {
            // Then its containers, networks and mounts have to go as well, within a limit.
            _ if self.vm.closed.is_cancelled() => grace.min(self.vm.config.remove_timeout / 2),
            Some(Why::IdleTooLong | Why::Asked) | None => grace,
            Some(Why::Evicted) => grace.min(EVICTED),
            // Nothing of it is to run on; or, after its only call, nobody should pay for a question to the engine.
            Some(Why::NeverReady | Why::OneCall | Why::TimedOut | Why::Crashed) => Duration::ZERO,
        }
    }
}
