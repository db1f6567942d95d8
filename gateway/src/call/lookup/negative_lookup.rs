//! Read-through for names that are not in the routing table, where several gateways share a store:
//! another gateway may have deployed the function a moment ago. A call waits for a query that began
//! after the call arrived. All waiting calls share one query per [`PAUSE`], so a flood of unknown
//! names costs the store one small query in that time; beyond [`MAX_WAITING`] waiting calls,
//! further ones are answered 404 at once.

use crate::{fleet::Fleet, routes::Routes};
use epsilon_api::{chain::Chain, ids::FunctionName};
use epsilon_store::{Store, StoreError};
use parking_lot::Mutex;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

/// Pause between two queries.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest wait of a call, and longest duration of a query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);
/// Most calls that wait at once.
const MAX_WAITING: usize = 128;

/// Collects unknown names and queries the store for them.
#[derive(Debug, Default)]
pub(crate) struct NegativeLookup {
    next: Mutex<Batch>,
    wake: Notify,
}

/// The next query. Dropping it notifies its waiters.
#[derive(Debug, Default)]
struct Batch {
    names: BTreeSet<FunctionName>,
    waiting: usize,
    answered: watch::Sender<()>,
}

impl NegativeLookup {
    /// Waits for a query that includes this name (`name` or `name@3`). Returns whether another
    /// lookup is worthwhile.
    pub(crate) async fn query(&self, text: &str) -> bool {
        let name = text.split_once('@').map_or(text, |(name, _)| name);
        let Ok(name) = FunctionName::parse(name) else { return false };
        let mut answered = {
            let mut next = self.next.lock();
            if next.waiting >= MAX_WAITING {
                return false;
            }
            next.waiting += 1;
            next.names.insert(name);
            next.answered.subscribe()
        };
        self.wake.notify_one();
        timeout(QUERY_TIMEOUT, answered.changed()).await.is_ok()
    }

    /// Runs until it is dropped. Input: unknown names. Output: the routing table.
    pub(crate) async fn run(
        self: Arc<Self>,
        routes: Arc<Routes>,
        fleet: Arc<Fleet>,
        store: Arc<dyn Store>,
    ) {
        loop {
            self.wake.notified().await;
            let batch = std::mem::take(&mut *self.next.lock());
            match timeout(QUERY_TIMEOUT, run_query(&batch, &routes, &fleet, &*store)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(error = %Chain(&error), "Store could not be queried for unknown names; they are answered 404.");
                }
                Err(_) => tracing::debug!(
                    "Store query for unknown names timed out; they are answered 404."
                ),
            }
            drop(batch);
            sleep(PAUSE).await;
        }
    }
}

/// Updates the routing table from the store if one of the names serves.
async fn run_query(
    batch: &Batch,
    routes: &Routes,
    fleet: &Fleet,
    store: &dyn Store,
) -> Result<(), StoreError> {
    // A name such as `hello@0` of a known function needs no query.
    let names: Vec<_> = {
        let table = routes.table();
        batch.names.iter().filter(|name| table.named(name.as_str()).is_none()).cloned().collect()
    };
    if names.is_empty() || !store.is_any_active(&names).await? {
        return Ok(());
    }
    let change = routes.change().await;
    let versions = store.snapshot().await?;
    let traffic = store.traffic().await?;
    change.sync_from_store(versions, traffic, fleet);
    Ok(())
}
