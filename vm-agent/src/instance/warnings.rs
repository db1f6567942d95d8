//! Warnings about instances in the agent's own log: code that fails at each call fails with each of them. Of one function and
//! one kind the first is a line at once, then there is one in ten seconds with the number of those left out; all of them at
//! debug level. Told by the pool's instances and by calls.

use super::Instance;
use epsilon_bootstrap::log::repeats::Repeats;
use std::time::Instant;

/// Those of one function. See the module.
#[derive(Debug, Default)]
pub(crate) struct Warnings(Repeats);

impl Warnings {
    /// `what` is the message and the kind.
    pub(crate) fn tell(&self, instance: &Instance, what: &'static str, cause: Option<&str>) {
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
