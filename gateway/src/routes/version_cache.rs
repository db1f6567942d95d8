//! Cache of versions that are called only by their own address, `/{function}@{version}`; they are
//! read from the store. One query reads all stored versions of a function, so numbers that do not
//! exist cost the store no more than those that do: one query per function and [`ABSENT_TTL`].

use crate::routes::Route;
use epsilon_api::{
    chain::Chain,
    error::{CallError, VmError},
    ids::{FunctionName, VersionNumber},
};
use epsilon_store::{Page, Store, StoreError};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout},
};

/// How long a result proves that a version does not exist: a new version becomes callable by its
/// address at most this much later.
const ABSENT_TTL: Duration = Duration::from_secs(2);
/// How long a result proves that a version exists: a removed version stays callable for at most
/// this long.
const PRESENT_TTL: Duration = Duration::from_secs(30);
/// Longest wait of a call for the store.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Functions that are cached; beyond that the oldest entry is evicted.
const MAX_FUNCTIONS: usize = 256;
/// Most versions cached per function, the newest ones. Older ones can be called after they are made
/// to serve.
const MAX_VERSIONS: u32 = 1000;

/// Cache of the versions of functions, filled on demand.
#[derive(Debug)]
pub(crate) struct VersionCache {
    store: Arc<dyn Store>,
    read: Mutex<HashMap<FunctionName, Arc<Query>>>,
}

/// One query to the store; concurrent callers share its result.
#[derive(Debug)]
struct Query {
    began: Instant,
    versions: OnceCell<HashMap<VersionNumber, Arc<Route>>>,
}

impl VersionCache {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, read: Mutex::default() }
    }

    /// The version `number` of a function: one that serves, one from the cache, or one from the
    /// store.
    pub(crate) async fn find(
        &self,
        function: &Arc<Route>,
        number: VersionNumber,
    ) -> Result<Arc<Route>, CallError> {
        if let Some(serving) = function.versions().find(|route| route.version.number == number) {
            return Ok(Arc::clone(serving));
        }
        let name = &function.version.function;
        if let Some(found) = self.cached(name, number) {
            return found
                .ok_or_else(|| CallError::VersionNotFound { function: name.clone(), number });
        }
        let query = self.query(name);
        let queried = query.versions.get_or_try_init(|| self.read_versions(function));
        let known = timeout(QUERY_TIMEOUT, queried).await;
        let known =
            known.unwrap_or_else(|_| Err(store_unavailable(name, "it took too long".into())))?;
        let found = known.get(&number).cloned();
        found.ok_or_else(|| CallError::VersionNotFound { function: name.clone(), number })
    }

    /// Whether this version may have been called by its address recently, or such a call still
    /// runs.
    pub(crate) fn is_called(&self, function: &str, number: VersionNumber) -> bool {
        let read = self.read.lock();
        let versions = read.get(function).and_then(|query| Some((query, query.versions.get()?)));
        versions.is_some_and(|(query, versions)| {
            let runs = |route: &Arc<Route>| Arc::strong_count(route) > 1;
            versions.get(&number).is_some_and(|it| query.began.elapsed() < PRESENT_TTL || runs(it))
        })
    }

    /// Drops what is cached of a function, because one of its versions was removed.
    pub(crate) fn forget(&self, function: &FunctionName) {
        self.read.lock().remove(function);
    }

    /// The cached result: the version, its absence, or nothing if the cache does not know.
    fn cached(&self, name: &FunctionName, number: VersionNumber) -> Option<Option<Arc<Route>>> {
        let read = self.read.lock();
        let query = read.get(name)?;
        let age = query.began.elapsed();
        let versions = query.versions.get()?;
        match versions.get(&number) {
            Some(route) if age < PRESENT_TTL => Some(Some(Arc::clone(route))),
            None if age < ABSENT_TTL => Some(None),
            Some(_) | None => None,
        }
    }

    /// The query that is in flight, or a new one.
    fn query(&self, name: &FunctionName) -> Arc<Query> {
        let mut read = self.read.lock();
        let is_in_flight = |query: &&Arc<Query>| {
            query.versions.get().is_none() && query.began.elapsed() < QUERY_TIMEOUT
        };
        if let Some(query) = read.get(name).filter(is_in_flight) {
            return Arc::clone(query);
        }
        if read.len() >= MAX_FUNCTIONS && !read.contains_key(name) {
            let oldest = read.iter().min_by_key(|(_, query)| query.began);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                read.remove(&oldest);
            }
        }
        let query = Arc::new(Query { began: Instant::now(), versions: OnceCell::new() });
        read.insert(name.clone(), Arc::clone(&query));
        query
    }

    async fn read_versions(
        &self,
        function: &Route,
    ) -> Result<HashMap<VersionNumber, Arc<Route>>, CallError> {
        let name = &function.version.function;
        let page = Page { cursor: None, limit: MAX_VERSIONS };
        let stored = match self.store.versions(name, &page).await {
            Ok(stored) => stored.items,
            Err(StoreError::FunctionNotFound(_)) => Vec::new(), // deleted in the meantime
            Err(err) => return Err(store_unavailable(name, Chain(&err).to_string().into())),
        };
        let stored = stored.into_iter().map(|one| {
            let number = one.version.number;
            (number, Arc::new(Route::of(one.version.into(), Arc::clone(&function.metrics))))
        });
        Ok(stored.collect())
    }
}

/// Nothing was executed, and a later attempt may succeed.
fn store_unavailable(function: &FunctionName, why: epsilon_api::error::Cause) -> CallError {
    tracing::debug!(%function, error = %Chain(&*why), "Versions could not be read from the store; the call is refused.");
    VmError::NoCapacity { function: function.clone(), cause: why }.into()
}
