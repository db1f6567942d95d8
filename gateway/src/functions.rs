//! Operations on deployed functions: roll back, promote, split, delete, retire a version. Each
//! writes the store, then the routing table, has VMs start or let go of instances, and logs what
//! was done and who caused it. The control API's handlers and the gateway's own rules
//! (`reconcile/`) call them; what makes new versions is `deploy`.
//!
//! | file | what it does |
//! |---|---|
//! | `actor.rs` | who causes a change, and by which means |
//! | `error.rs` | why one was not made |
//! | `ready.rs` | instances of a version before it gets calls |
//! | `rollback.rs`, `promote.rs` | another version gets all calls |
//! | `split.rs` | calls are split among versions; the end of a split by its error rate |
//! | `delete.rs`, `retire.rs` | a function, or versions that do not serve, are removed |
//!
//! A change that has begun runs to its end, also if its caller is gone: half of one would be worse.

pub(crate) mod actor;
mod delete;
pub(crate) mod error;
mod promote;
pub(crate) mod ready;
mod retire;
mod rollback;
mod split;

use crate::fleet::Fleet;
use crate::observe::metrics::Metrics;
use crate::routes::Routes;
use crate::routes::version_cache::VersionCache;
use crate::traffic::config::Config as Traffic;
use epsilon_api::function::Version;
use epsilon_store::Store;
use error::ChangeError;
use ready::Started;
use std::{sync::Arc, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Carries the changes out.
#[derive(Debug)]
pub(crate) struct Functions {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) fleet: Arc<Fleet>,
    /// Versions that are called by their address; one that is removed leaves it.
    pub(crate) version_cache: Arc<VersionCache>,
    pub(crate) metrics: Arc<Metrics>,
    /// Terms of a split that its request leaves out.
    pub(crate) traffic: Traffic,
    /// Longest that one VM may take to start a version before it gets calls.
    pub(crate) start_limit: Duration,
    /// Cancelled when the gateway stops: warm-ups end.
    pub(crate) close: CancellationToken,
    /// Tracks changes, which the gateway's stop waits for.
    pub(crate) background: TaskTracker,
}

impl Functions {
    /// Runs a change to its end, even if the future of this call is dropped.
    async fn run_to_completion<T, F>(&self, change: F) -> Result<T, ChangeError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ChangeError>> + Send + 'static,
    {
        self.background.spawn(change).await.unwrap_or_else(|err| Err(ChangeError::Panicked(err)))
    }

    /// Ensures that a VM has an instance of a version that is about to get calls.
    async fn ready(&self, started: &mut Started<'_>, version: Version) -> Result<(), ChangeError> {
        let number = version.number;
        let ready = started.ensure(version, self.start_limit).await;
        ready.map_err(|cause| ChangeError::NotReady { number, cause })
    }
}

#[cfg(test)]
mod tests;
