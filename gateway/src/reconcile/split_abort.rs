//! Ends splits whose version fails too often. One task. This gateway's calls go to the stable
//! version as soon as the error window says so; this task records the end in the store, so that all
//! gateways follow, and logs the reason.

use crate::routes::split::Split;
use crate::{fleet::Fleet, observe::metrics::Metrics, routes::Routes};
use epsilon_api::chain::Chain;
use epsilon_store::{Store, StoreError};
use std::{sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};

/// Longest wait for the store; no call waits for it.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause while the store is unavailable.
const PAUSE: Duration = Duration::from_secs(1);

/// Ends splits automatically.
#[derive(Debug)]
pub(crate) struct Aborts {
    pub(crate) routes: Arc<Routes>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Aborts {
    /// Runs until it is dropped. Input: notifications of error windows. Output: the store, the
    /// routing table, the log.
    pub(crate) async fn run(self) {
        loop {
            // A breach during this loop sets the notification again.
            self.routes.breached().await;
            while let Some(split) = self.broken() {
                if self.end(&split).await.is_err() {
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// A split in the table that has to end.
    fn broken(&self) -> Option<Arc<Split>> {
        let table = self.routes.table();
        let mut splits = table.routes().filter_map(|route| route.split());
        splits.find(|split| split.breach().is_some()).cloned()
    }

    async fn end(&self, split: &Split) -> Result<(), ()> {
        let terms = &split.terms;
        let Some(why) = split.breach() else { return Ok(()) };
        let change = self.routes.change().await;
        let answer = self.store.abort_split(&terms.function, terms.since, why);
        let answer = timeout(QUERY_TIMEOUT, answer).await;
        let function = &terms.function;
        let stable = terms.stable;
        match answer {
            Ok(Ok(is_ours)) => {
                // If another gateway ended the split first, the store has its record, which `sync`
                // will read.
                change.abort(terms, is_ours.then_some(why), &self.fleet);
                if is_ours {
                    self.metrics.traffic.aborted.inc();
                    let reason = why.to_string();
                    tracing::warn!(%function, %stable, reason, "Split ended because a version failed too often; all calls go to the stable version.");
                }
                Ok(())
            }
            Ok(Err(StoreError::Unavailable(_))) | Err(_) => {
                tracing::debug!(%function, "Store is unavailable; ending a split will be retried.");
                Err(())
            }
            Ok(Err(error)) => {
                tracing::error!(%function, error = %Chain(&error), "Split could not be ended in the store; retrying.");
                Err(())
            }
        }
    }
}
