//! Rate-limited warnings about instances in the agent's own log: code may fail at each call. Per
//! function and kind of warning, the first is logged at once, then at most one in ten seconds with
//! the number of those left out; all are logged at debug level. Used by pools and calls.

use super::Instance;
use epsilon_bootstrap::log::repeats::Repeats;
use std::time::Instant;

/// The warnings of one function.
#[derive(Debug, Default)]
pub(crate) struct Warnings(Repeats);

impl Warnings {
    /// Logs a warning. `what` is the message and the kind.
    pub(crate) fn log(&self, instance: &Instance, what: &'static str, cause: Option<&str>) {
        let (function, version) = (&instance.version.function, instance.version.number);
        let instance = instance.id();
        match self.0.admit(what, Instant::now()) {
            Some(repeated) => {
                let repeated = (repeated > 0).then_some(repeated);
                tracing::warn!(%function, %version, %instance, cause, repeated, "{what}");
            }
            None => tracing::debug!(%function, %version, %instance, cause, "{what}"),
        }
    }
}
