//! Ends splits whose version fails too often. One task. Calls of this gateway go to the stable version from the moment that
//! the tally says so; what is done here makes it so for all gateways, and lets everybody know why.

use super::split::Split;
use crate::{fleet::Fleet, observe::metrics::Metrics, routes::Routes};
use epsilon_api::chain::Chain;
use epsilon_store::{Store, StoreError};
use std::{sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};

/// Longest that the store may take; nobody waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause while the store is away.
const PAUSE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Aborts {
    pub(crate) routes: Arc<Routes>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Aborts {
    /// Runs until it is dropped. Input: news of tallies. Output: the store, the table, the log.
    pub(crate) async fn run(self) {
        loop {
            // A breach that comes while others are dealt with is told again.
            self.routes.breached().await;
            while let Some(split) = self.broken() {
                if self.end(&split).await.is_err() {
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// A split that holds by the table and should not.
    fn broken(&self) -> Option<Arc<Split>> {
        let table = self.routes.table();
        let mut splits = table.routes().filter_map(|route| route.split());
        splits.find(|split| split.breach().is_some()).cloned()
    }

    async fn end(&self, split: &Split) -> Result<(), ()> {
        let terms = &split.terms;
        let Some(why) = split.breach() else { return Ok(()) };
        let change = self.routes.change().await;
        let asked = self.store.abort_split(&terms.function, terms.since, why);
        let asked = timeout(PATIENCE, asked).await;
        let (function, stable) = (&terms.function, terms.stable);
        match asked {
            Ok(Ok(is_ours)) => {
                // Where it was not ours, whoever was first has told the store something else, and so will `sync`.
                change.abort(terms, is_ours.then_some(why), &self.fleet);
                if is_ours {
                    self.metrics.traffic.aborted.inc();
                    let reason = why.to_string();
                    tracing::warn!(%function, %stable, reason, "Split ended: all calls go to the stable version.");
                }
                Ok(())
            }
            Ok(Err(StoreError::Unavailable(_))) | Err(_) => {
                tracing::debug!(%function, "The end of a split waits for the store.");
                Err(())
            }
            Ok(Err(error)) => {
                tracing::error!(%function, error = %Chain(&error), "A split cannot be ended.");
                Err(())
            }
        }
    }
}
