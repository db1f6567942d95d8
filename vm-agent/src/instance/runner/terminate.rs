//! The graceful end of an instance: SIGTERM, the function's `stopGrace` for its shutdown hooks,
//! then the rest is killed with its container. Called by `runner.rs` between the order to stop and
//! the removal; no call waits for it.

use super::Runner;
use crate::container::exit::ExitWatch;
use crate::instance::state::StopReason;
use epsilon_api::{chain::Chain, log::Level};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Longest grace period of an evicted instance: a start waits for its memory, and the evicted
/// function must not decide for how long.
const EVICTED: Duration = Duration::from_secs(1);

impl Runner {
    /// Sends SIGTERM to the process and waits for its end within the grace period.
    pub(super) async fn terminate(&self, exit: ExitWatch) {
        let grace = self.grace();
        if grace.is_zero() {
            return;
        }
        self.instance.thaw(); // frozen processes get no signal
        let sent_at = Instant::now();
        if let Err(err) = self.context.engine.terminate(self.instance.container()).await {
            tracing::debug!(instance = %self.instance.id(), error = %Chain(&err), "SIGTERM could not be sent to the instance.");
            return; // it ended before, or its engine is down
        }
        tokio::select! {
            // Both may be dropped: a watch, a timer.
            biased;
            _ = exit => self.instance.release_memory(),
            () = sleep_until(sent_at + grace) => {
                let grace = humantime::format_duration(grace);
                let text = format!("the instance did not end within {grace} of SIGTERM and was killed; `stopGrace` sets this time");
                self.context.logs.event(&self.instance.version, self.instance.id(), Level::Warn, None, text);
            }
        }
    }

    fn grace(&self) -> Duration {
        let grace = self.instance.version.spec.stop_grace;
        match self.pool.why_stopping(self.key) {
            // At shutdown containers, networks and mounts have to be removed as well, within a
            // limit.
            _ if self.context.closed.is_cancelled() => {
                grace.min(self.context.config.remove_timeout / 2)
            }
            Some(StopReason::IdleTooLong | StopReason::Requested) | None => grace,
            Some(StopReason::Evicted) => grace.min(EVICTED),
            // Broken code must not run on; and after an only call, an engine request is not worth
            // its cost.
            Some(
                StopReason::NeverReady
                | StopReason::OneCall
                | StopReason::TimedOut
                | StopReason::Crashed,
            ) => Duration::ZERO,
        }
    }
}
