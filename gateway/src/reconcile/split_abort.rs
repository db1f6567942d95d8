//! Ends splits whose version fails too often. One task. This gateway's calls go to the stable
//! version as soon as the error window says so; this task records the end in the store, so that all
//! gateways follow, and logs the reason.

use crate::functions::Functions;
use crate::functions::actor::{Actor, Rule};
use crate::functions::error::ChangeError;
use crate::routes::Routes;
use crate::routes::split::Split;
use epsilon_api::chain::Chain;
use epsilon_store::StoreError;
use std::{sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};

/// Longest wait for other changes and the store; no call waits for them.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause while the store is unavailable.
const PAUSE: Duration = Duration::from_secs(1);

/// Ends splits automatically.
#[derive(Debug)]
pub(crate) struct Aborts {
    pub(crate) routes: Arc<Routes>,
    pub(crate) functions: Arc<Functions>,
}

impl Aborts {
    /// Runs until it is dropped. Input: notifications of error windows. Output: splits that
    /// ended.
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
        let function = &split.terms.function;
        let ended = self.functions.abort(&Actor::Gateway(Rule::ErrorRate), split);
        match timeout(QUERY_TIMEOUT, ended).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(ChangeError::Store(StoreError::Unavailable(_)))) | Err(_) => {
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
