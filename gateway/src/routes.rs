//! The routing table: which version serves each name, in memory. Read by every call without a lock;
//! written when a version is activated, split, rolled back or deleted, after the store has accepted
//! the change.

pub(crate) mod error_window;
pub(crate) mod split;
pub(crate) mod version_cache;

use crate::fleet::Fleet;
use crate::fleet::view::VersionKey;
use crate::observe::metrics::{FunctionMetrics, Metrics};
use arc_swap::{ArcSwap, Guard};
use epsilon_api::{
    function::Version,
    ids::{FunctionName, VersionNumber},
    traffic::{Aborted, text},
};
use epsilon_placement::hash;
use epsilon_store::Traffic;
use error_window::ErrorWindow;
use http::HeaderValue;
use jiff::Timestamp;
use rapidhash::fast::RandomState;
use split::Split;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use tokio::sync::Notify;

/// One function that can be called, or one version of it.
#[derive(Debug)]
pub(crate) struct Route {
    /// The active version; of a split, the stable one.
    pub(crate) version: Arc<Version>,
    /// The version's key in the fleet.
    pub(crate) key: VersionKey,
    /// The function's position on the ring.
    pub(crate) home: u64,
    /// The path prefix of its calls, which is removed and passed to the function as a header.
    pub(crate) prefix: HeaderValue,
    /// Metrics of its calls.
    pub(crate) metrics: Arc<FunctionMetrics>,
    /// Whether this version gets all calls of the function.
    pub(crate) sharing: Sharing,
    /// The error window, if this is a version of a split.
    pub(crate) error_window: Option<Arc<ErrorWindow>>,
}

/// Whether a version gets all calls of its function.
#[derive(Debug)]
pub(crate) enum Sharing {
    /// It gets all calls.
    Alone,
    /// Other versions get a part of them.
    Split(Arc<Split>),
    /// It gets all calls again, because another version failed too often.
    Aborted(Arc<Traffic>),
}

impl Sharing {
    /// Identifies the state, to detect changes.
    fn identity(&self) -> Option<(Timestamp, bool)> {
        match self {
            Self::Alone => None,
            Self::Split(split) => Some((split.terms.since, false)),
            Self::Aborted(traffic) => Some((traffic.since, true)),
        }
    }
}

impl Route {
    /// A version that gets all calls.
    pub(crate) fn of(version: Arc<Version>, metrics: Arc<FunctionMetrics>) -> Self {
        let key = VersionKey::of_version(&version);
        let home = hash::of_name(version.function.as_str());
        let prefix = crate::call::header_value::header(&format!("/{}", version.function));
        Self { version, key, home, prefix, metrics, sharing: Sharing::Alone, error_window: None }
    }

    /// The same version with an error window.
    pub(crate) fn with_error_window(&self, error_window: Arc<ErrorWindow>) -> Self {
        let error_window = Some(error_window);
        Self { error_window, ..Self::of(Arc::clone(&self.version), Arc::clone(&self.metrics)) }
    }

    /// The current split.
    pub(crate) fn split(&self) -> Option<&Arc<Split>> {
        match &self.sharing {
            Sharing::Split(split) => Some(split),
            Sharing::Alone | Sharing::Aborted(_) => None,
        }
    }

    /// How the function's last split was ended automatically.
    pub(crate) fn aborted(&self) -> Option<&Aborted> {
        match &self.sharing {
            Sharing::Aborted(traffic) => traffic.aborted.as_ref(),
            Sharing::Alone | Sharing::Split(_) => None,
        }
    }

    /// The versions that get calls, each with its own route.
    pub(crate) fn versions(self: &Arc<Self>) -> impl Iterator<Item = &Arc<Self>> {
        let targets = self.split().map_or(&[][..], |split| split.targets());
        let alone = targets.is_empty().then_some(self);
        targets.iter().map(|arm| &arm.plain).chain(alone)
    }
}

/// All functions at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    by_name: HashMap<FunctionName, Arc<Route>, RandomState>,
    /// Host names are case-insensitive: lower-case names that match exactly one function.
    by_host: HashMap<String, FunctionName, RandomState>,
}

impl Table {
    /// The function with exactly this name.
    pub(crate) fn named(&self, name: &str) -> Option<&Arc<Route>> {
        self.by_name.get(name)
    }

    /// The function with this name in a host name.
    pub(crate) fn named_in_host(&self, label: &str) -> Option<&Arc<Route>> {
        self.named(label)
            .or_else(|| self.named(self.by_host.get(&label.to_ascii_lowercase())?.as_str()))
    }

    /// The route of this version, if it gets calls of its function.
    pub(crate) fn serving(&self, function: &str, number: VersionNumber) -> Option<&Arc<Route>> {
        self.named(function)?.versions().find(|route| route.version.number == number)
    }

    /// Whether this version gets calls of its function.
    pub(crate) fn serves(&self, version: &Version) -> bool {
        self.serving(version.function.as_str(), version.number).is_some()
    }

    /// All functions, in no particular order.
    pub(crate) fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.by_name.values()
    }

    /// All versions that get calls, each with its own route.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.by_name.values().flat_map(Route::versions)
    }

    fn with_hosts(mut self) -> Self {
        let mut by_host: HashMap<String, Option<FunctionName>, RandomState> = HashMap::default();
        for name in self.by_name.keys() {
            by_host
                .entry(name.as_str().to_ascii_lowercase())
                .and_modify(|found| *found = None)
                .or_insert_with(|| Some(name.clone()));
        }
        self.by_host = by_host.into_iter().filter_map(|(host, name)| Some((host, name?))).collect();
        self
    }
}

/// The table that calls read, and the lock for changes.
#[derive(Debug)]
pub(crate) struct Routes {
    table: ArcSwap<Table>,
    metrics: Arc<Metrics>,
    /// Notified when a version of a split failed too often.
    breached: Arc<Notify>,
    /// Held while the store and then the table are changed, so that both see changes in the same
    /// order. Calls never wait for it.
    write_lock: tokio::sync::Mutex<()>,
}

/// The right to change the table.
#[derive(Debug)]
pub(crate) struct Change<'a> {
    routes: &'a Routes,
    _guard: tokio::sync::MutexGuard<'a, ()>,
}

impl Routes {
    /// A table of these versions and their splits.
    pub(crate) fn new(
        versions: Vec<Version>,
        traffic: Vec<Traffic>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let routes = Self {
            table: ArcSwap::default(),
            metrics,
            breached: Arc::default(),
            write_lock: tokio::sync::Mutex::default(),
        };
        let mut traffic = by_name(traffic);
        routes.swap(|table| {
            for version in versions {
                let traffic = traffic.remove(&version.function);
                routes.put(table, Arc::new(version), traffic);
            }
        });
        routes
    }

    /// The current table.
    pub(crate) fn table(&self) -> Guard<Arc<Table>> {
        self.table.load()
    }

    /// Waits for other changes and takes the right to change the table.
    pub(crate) async fn change(&self) -> Change<'_> {
        Change { routes: self, _guard: self.write_lock.lock().await }
    }

    /// Waits until a version of a split has failed too often.
    pub(crate) async fn breached(&self) {
        self.breached.notified().await;
    }

    /// Returns the route that was replaced.
    fn put(
        &self,
        table: &mut Table,
        version: Arc<Version>,
        traffic: Option<Traffic>,
    ) -> Option<Arc<Route>> {
        let name = version.function.clone();
        let metrics = match table.by_name.get(&name) {
            Some(route) => Arc::clone(&route.metrics),
            None => self.metrics.function(&name),
        };
        let mut route = Route::of(version, metrics);
        route.sharing = match traffic.filter(|traffic| traffic.stable == route.version.number) {
            None => Sharing::Alone,
            Some(traffic) if traffic.aborted.is_some() => Sharing::Aborted(traffic.into()),
            Some(traffic) => {
                let metrics = &self.metrics;
                let notify = &self.breached;
                let split = Split::new(&route.version, traffic, &route.metrics, metrics, notify);
                Sharing::Split(split.into())
            }
        };
        table.by_name.insert(name, Arc::new(route))
    }

    fn swap<T>(&self, edit: impl FnOnce(&mut Table) -> T) -> T {
        let mut table = Table::clone(&self.table.load());
        let result = edit(&mut table);
        let table = table.with_hosts();
        self.metrics.functions.set(table.by_name.len() as i64);
        self.table.store(Arc::new(table));
        result
    }
}

fn by_name(traffic: Vec<Traffic>) -> HashMap<FunctionName, Traffic> {
    traffic.into_iter().map(|one| (one.function.clone(), one)).collect()
}

/// Versions that no longer serve are retired while the lock is still held: later, a retirement
/// could hit a version that the next change has activated again.
impl Change<'_> {
    /// Makes all these versions get all calls of their functions, in one step, and retires those
    /// that no longer get any. A version that already serves, alone or in a split, is not changed.
    /// Returns notes about splits that ended.
    pub(crate) fn serve(&self, versions: Vec<Arc<Version>>, fleet: &Fleet) -> Vec<String> {
        let before: Vec<Arc<Route>> = self.routes.swap(|table| {
            let new = versions.into_iter().filter(|version| {
                let route = table.named(version.function.as_str());
                route.is_none_or(|route| route.version.number != version.number)
            });
            let new: Vec<_> = new.collect();
            new.into_iter().filter_map(|version| self.routes.put(table, version, None)).collect()
        });
        self.retire(&before, fleet);
        let ended = before.iter().filter_map(|route| {
            let shares = text(&route.split()?.terms.split.slots.shares());
            let function = &route.version.function;
            Some(format!(
                "note: the split of `{function}` ({shares}) ended: the new version gets all calls"
            ))
        });
        ended.collect()
    }

    /// Makes this version serve, or makes it the stable version of this split.
    pub(crate) fn share(&self, version: Version, traffic: Option<Traffic>, fleet: &Fleet) {
        let put = |table: &mut Table| self.routes.put(table, version.into(), traffic);
        let before = self.routes.swap(put);
        self.retire(&before, fleet);
    }

    /// Gives all calls to the stable version of this split, if it is the current one. `why` is
    /// stored with the route.
    pub(crate) fn abort(&self, terms: &Traffic, why: Option<&Aborted>, fleet: &Fleet) {
        let holds = self.routes.table().named(terms.function.as_str()).and_then(|route| {
            let split = route.split().filter(|split| split.terms.since == terms.since);
            split.map(|_| Version::clone(&route.version))
        });
        if let Some(version) = holds {
            let ended = |why: &Aborted| Traffic {
                aborted: Some(why.clone()),
                candidates: Vec::new(),
                ..terms.clone()
            };
            self.share(version, why.map(ended), fleet);
        }
    }

    /// Removes a function.
    pub(crate) fn remove(&self, name: &FunctionName, fleet: &Fleet) {
        let before = self.routes.swap(|table| table.by_name.remove(name.as_str()));
        self.retire(&before, fleet);
    }

    /// Replaces the table by these versions and splits, which another gateway has changed.
    /// Unchanged functions keep their routes.
    pub(crate) fn sync_from_store(
        &self,
        versions: Vec<Version>,
        traffic: Vec<Traffic>,
        fleet: &Fleet,
    ) {
        let mut traffic = by_name(traffic);
        let (mut new, mut gone) = (Vec::new(), Vec::new());
        {
            let table = self.routes.table();
            let names: HashSet<&FunctionName> = versions.iter().map(|one| &one.function).collect();
            gone.extend(table.by_name.keys().filter(|name| !names.contains(name)).cloned());
            for version in versions {
                let traffic = traffic.remove(&version.function);
                let traffic = traffic.filter(|traffic| traffic.stable == version.number);
                let identity = traffic.as_ref().map(|one| (one.since, one.aborted.is_some()));
                let is_known = table.named(version.function.as_str()).is_some_and(|route| {
                    route.version.number == version.number && route.sharing.identity() == identity
                });
                if !is_known {
                    new.push((version, traffic));
                }
            }
        }
        if new.is_empty() && gone.is_empty() {
            return;
        }
        tracing::info!(
            changed = new.len(),
            gone = gone.len(),
            "Routing table updated from the store."
        );
        let before: Vec<Arc<Route>> = self.routes.swap(|table| {
            let removed = gone.iter().filter_map(|name| table.by_name.remove(name.as_str()));
            let mut before: Vec<_> = removed.collect();
            let put =
                |(version, traffic): (Version, _)| self.routes.put(table, version.into(), traffic);
            before.extend(new.into_iter().filter_map(put));
            before
        });
        self.retire(&before, fleet);
    }

    /// Retires the versions of these routes that no longer get calls.
    fn retire<'a>(&self, before: impl IntoIterator<Item = &'a Arc<Route>>, fleet: &Fleet) {
        let table = self.routes.table();
        for route in before.into_iter().flat_map(Route::versions) {
            if !table.serves(&route.version) {
                fleet.retire(&route.version);
            }
        }
    }

    /// Retires a version unless it serves.
    pub(crate) fn retire_unless_active(&self, version: &Version, fleet: &Fleet) {
        if !self.routes.table().serves(version) {
            fleet.retire(version);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fleet::HealthPolicy,
        testing::{self, FakeVm},
    };
    use prometheus::Registry;
    use std::time::{Duration, Instant};

    fn routes(versions: Vec<Version>) -> (Routes, Fleet, Arc<FakeVm>) {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let vm = FakeVm::new("a");
        let fleet = Fleet::new([Arc::clone(&vm) as _], &HealthPolicy::default());
        (Routes::new(versions, Vec::new(), metrics), fleet, vm)
    }

    fn serving(routes: &Routes) -> Vec<String> {
        let table = routes.table();
        let mut all: Vec<_> = table.routes().map(|one| one.version.id().to_string()).collect();
        all.sort();
        all
    }

    #[tokio::test]
    async fn only_changes_of_other_gateways_are_applied() {
        let version = testing::version;
        let (routes, fleet, vm) = routes(vec![version("a", 1), version("b", 1), version("c", 3)]);
        let before = Arc::clone(routes.table().named("a").unwrap());
        let now = vec![version("a", 1), version("c", 2), version("d", 1)];
        routes.change().await.sync_from_store(now.clone(), Vec::new(), &fleet);
        assert_eq!(serving(&routes), ["a@1", "c@2", "d@1"]);
        assert_eq!(vm.retired(), ["b@1", "c@3"]);
        assert!(Arc::ptr_eq(routes.table().named("a").unwrap(), &before));
        assert!(routes.table().named_in_host("b").is_none());

        let table = Arc::clone(&routes.table());
        routes.change().await.sync_from_store(now, Vec::new(), &fleet);
        assert!(Arc::ptr_eq(&table, &routes.table()), "nothing differs, so nothing is copied");
    }

    /// The table is copied for each change; this limits the cost.
    #[tokio::test]
    async fn a_change_among_ten_thousand_functions_is_no_event() {
        let all = (0..10_000).map(|n| testing::version(&format!("function-{n}"), 1)).collect();
        let (routes, fleet, _) = routes(all);
        let change = routes.change().await;
        let began = Instant::now();
        change.serve(vec![Arc::new(testing::version("function-7", 2))], &fleet);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}, without optimisation");
    }
}
