//! A version is to be served: the gateway asks for an instance before calls come (a deployment,
//! `minInstances`), and waits until there is one or its start failed.

use super::{Pool, state::Readiness};
use crate::container::failure::StartFailure;
use epsilon_api::error::VmError;
use std::sync::Arc;
use tokio::time::timeout;

impl Pool {
    /// The version is to be served: at least one instance now, `minInstances` from now on.
    pub(crate) async fn ensure_ready(self: &Arc<Self>) -> Result<(), VmError> {
        let mut pulse = self.pulse.subscribe();
        let seen = self.locked.lock().state.request_ready(self.context.is_draining());
        let _request = ReadyRequest(self);
        loop {
            let failure = {
                let mut locked = self.locked.lock();
                match locked.state.readiness(seen) {
                    Readiness::Ready => return Ok(()),
                    Readiness::Failed(failure) => Some(failure),
                    Readiness::Pending if self.context.closed.is_cancelled() => {
                        Some(StartFailure::Cancelled)
                    }
                    Readiness::Pending => {
                        let now = self.context.now();
                        let actions = locked.state.start_what_is_needed(now);
                        self.carry_out(locked, actions, now);
                        None
                    }
                }
            };
            if let Some(failure) = failure {
                return Err(failure.to_error(&self.version.function));
            }
            let limit = self.context.config.pull_timeout + 2 * self.context.config.start_timeout;
            if timeout(limit, pulse.changed()).await.is_err() {
                let cause = format!("no instance became ready within {limit:?}");
                return Err(StartFailure::NoCapacity(cause).to_error(&self.version.function));
            }
        }
    }
}

/// Ends the request of one `ensure_ready`.
struct ReadyRequest<'a>(&'a Arc<Pool>);

impl Drop for ReadyRequest<'_> {
    fn drop(&mut self) {
        self.0.locked.lock().state.end_ready_request();
    }
}
