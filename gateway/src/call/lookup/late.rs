//! Functions that another gateway has made a moment ago, before this one heard of them: on a store that several gateways
//! share, a name that is not in the table is asked about before it is 404. Whoever waits, waits for a question that began
//! after it came. All that wait share one, so that a flood of names that nobody has costs the store [`PAUSE`] by
//! [`PAUSE`] one small question, and callers beyond [`WAITING`] are told 404 at once.

use crate::{fleet::Fleet, routes::Routes};
use epsilon_api::{chain::Chain, ids::FunctionName};
use epsilon_store::{Store, StoreError};
use parking_lot::Mutex;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest that a call waits, and longest that a question may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// Calls that wait at once.
const WAITING: usize = 128;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Late {
    next: Mutex<Question>,
    news: Notify,
}

/// What is asked next. Its waiters hear that it was answered when it is dropped.
#[derive(Debug, Default)]
struct Question {
    names: BTreeSet<FunctionName>,
    waiting: usize,
    answered: watch::Sender<()>,
}

impl Late {
    /// Waits until it was asked whether there is such a function (`name` or `name@3`). Whether it is worth looking again.
    pub(crate) async fn asked(&self, text: &str) -> bool {
        let name = text.split_once('@').map_or(text, |(name, _)| name);
        let Ok(name) = FunctionName::parse(name) else { return false };
        let mut answered = {
            let mut next = self.next.lock();
            if next.waiting >= WAITING {
                return false;
            }
            next.waiting += 1;
            next.names.insert(name);
            next.answered.subscribe()
        };
        self.news.notify_one();
        timeout(PATIENCE, answered.changed()).await.is_ok()
    }

    /// Runs until it is dropped. Input: names. Output: the table.
    pub(crate) async fn run(
        self: Arc<Self>,
        routes: Arc<Routes>,
        fleet: Arc<Fleet>,
        store: Arc<dyn Store>,
    ) {
        loop {
            self.news.notified().await;
            let question = std::mem::take(&mut *self.next.lock());
            match timeout(PATIENCE, ask(&question, &routes, &fleet, &*store)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(error = %Chain(&error), "Unknown names stay unknown.");
                }
                Err(_) => tracing::debug!("Unknown names stay unknown: the store takes too long."),
            }
            drop(question);
            sleep(PAUSE).await;
        }
    }
}

/// Follows what serves, if one of the names does.
async fn ask(
    question: &Question,
    routes: &Routes,
    fleet: &Fleet,
    store: &dyn Store,
) -> Result<(), StoreError> {
    // `hello@0` of a function that is known is nobody's news.
    let names: Vec<_> = {
        let table = routes.table();
        question.names.iter().filter(|name| table.named(name.as_str()).is_none()).cloned().collect()
    };
    if names.is_empty() || !store.any_serves(&names).await? {
        return Ok(());
    }
    let change = routes.change().await;
    let versions = store.snapshot().await?;
    let traffic = store.traffic().await?;
    change.follow(versions, traffic, fleet);
    Ok(())
}
