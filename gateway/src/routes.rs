//! Which version answers to which name, in memory. Read by every call without a lock; written when
//! something is activated, rolled back or deleted, after the store has said yes.

use crate::{
    call::place::stable,
    fleet::{Fleet, view::VersionKey},
    observe::metrics::{FunctionMetrics, Metrics},
};
use arc_swap::{ArcSwap, Guard};
use epsilon_api::{function::Version, ids::FunctionName};
use rapidhash::fast::RandomState;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// One function that can be called.
#[derive(Debug)]
pub(crate) struct Route {
    /// What serves.
    pub(crate) version: Arc<Version>,
    /// The same, as the fleet looks it up.
    pub(crate) key: VersionKey,
    /// The function's place on the ring.
    pub(crate) home: u64,
    /// Where its calls are counted.
    pub(crate) metrics: Arc<FunctionMetrics>,
}

/// All functions at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    by_name: HashMap<FunctionName, Arc<Route>, RandomState>,
    /// Host names have no case: names in lower case that stand for one function only.
    by_host: HashMap<String, FunctionName, RandomState>,
}

impl Table {
    /// The function of exactly this name.
    pub(crate) fn named(&self, name: &str) -> Option<&Arc<Route>> {
        self.by_name.get(name)
    }

    /// The function of this name as it stands in a host name.
    pub(crate) fn named_in_host(&self, label: &str) -> Option<&Arc<Route>> {
        self.named(label)
            .or_else(|| self.named(self.by_host.get(&label.to_ascii_lowercase())?.as_str()))
    }

    /// Whether this version is the one that answers to its name.
    pub(crate) fn serves(&self, version: &Version) -> bool {
        self.named(version.function.as_str())
            .is_some_and(|route| route.version.number == version.number)
    }

    /// All functions, in no order.
    pub(crate) fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.by_name.values()
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

/// The table that calls read, and the one door for changes.
#[derive(Debug)]
pub(crate) struct Routes {
    table: ArcSwap<Table>,
    metrics: Arc<Metrics>,
    /// Held over "store, then table", so that both see changes in the same order. Calls never wait for it.
    door: tokio::sync::Mutex<()>,
}

/// The right to change the table.
#[derive(Debug)]
pub(crate) struct Change<'a> {
    routes: &'a Routes,
    _door: tokio::sync::MutexGuard<'a, ()>,
}

impl Routes {
    /// A table of these versions.
    pub(crate) fn new(versions: Vec<Version>, metrics: Arc<Metrics>) -> Self {
        let routes =
            Self { table: ArcSwap::default(), metrics, door: tokio::sync::Mutex::default() };
        routes.swap(|table| {
            for version in versions {
                routes.put(table, Arc::new(version));
            }
        });
        routes
    }

    /// The table as it is now.
    pub(crate) fn table(&self) -> Guard<Arc<Table>> {
        self.table.load()
    }

    /// Waits for other changes to be over.
    pub(crate) async fn change(&self) -> Change<'_> {
        Change { routes: self, _door: self.door.lock().await }
    }

    fn put(&self, table: &mut Table, version: Arc<Version>) -> Option<Arc<Version>> {
        let name = version.function.clone();
        let metrics = match table.by_name.get(&name) {
            Some(route) => Arc::clone(&route.metrics),
            None => self.metrics.function(&name),
        };
        let key = VersionKey::of_version(&version);
        let home = stable::of_name(version.function.as_str());
        let route = Arc::new(Route { version, key, home, metrics });
        table.by_name.insert(name, route).map(|old| Arc::clone(&old.version))
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

/// What serves no more is retired while the door is still held: done later, it could hit a version that
/// the next change has made serve again.
impl Change<'_> {
    /// Lets all these versions serve from now on, in one step, and retires those that no longer do.
    pub(crate) fn serve(&self, versions: Vec<Arc<Version>>, fleet: &Fleet) {
        let old: Vec<Arc<Version>> = self.routes.swap(|table| {
            versions
                .into_iter()
                .filter_map(|version| {
                    let number = version.number;
                    self.routes.put(table, version).filter(|old| old.number != number)
                })
                .collect()
        });
        for version in &old {
            fleet.retire(version);
        }
    }

    /// The function answers no more.
    pub(crate) fn remove(&self, name: &FunctionName, fleet: &Fleet) {
        let old = self.routes.swap(|table| table.by_name.remove(name.as_str()));
        if let Some(route) = old {
            fleet.retire(&route.version);
        }
    }

    /// These serve, all of them and no others: what another gateway has changed. Nothing happens where nothing differs.
    pub(crate) fn follow(&self, versions: Vec<Version>, fleet: &Fleet) {
        let (mut new, mut gone) = (Vec::new(), Vec::new());
        {
            let table = self.routes.table();
            let names: HashSet<&FunctionName> = versions.iter().map(|one| &one.function).collect();
            gone.extend(table.by_name.keys().filter(|name| !names.contains(name)).cloned());
            new.extend(versions.iter().filter(|version| !table.serves(version)).cloned());
        }
        if new.is_empty() && gone.is_empty() {
            return;
        }
        tracing::info!(changed = new.len(), gone = gone.len(), "Following what serves now.");
        let old: Vec<Arc<Version>> = self.routes.swap(|table| {
            let removed = gone.iter().filter_map(|name| table.by_name.remove(name.as_str()));
            let mut old: Vec<_> = removed.map(|route| Arc::clone(&route.version)).collect();
            old.extend(
                new.into_iter().filter_map(|version| self.routes.put(table, version.into())),
            );
            old
        });
        for version in &old {
            fleet.retire(version);
        }
    }

    /// Retires a version unless it serves.
    pub(crate) fn let_go(&self, version: &Version, fleet: &Fleet) {
        if !self.routes.table().serves(version) {
            fleet.retire(version);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fleet::Care,
        testing::{self, FakeVm},
    };
    use prometheus::Registry;
    use std::time::{Duration, Instant};

    fn routes(versions: Vec<Version>) -> (Routes, Fleet, Arc<FakeVm>) {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let vm = FakeVm::new("a");
        let fleet = Fleet::new([Arc::clone(&vm) as _], &Care::default());
        (Routes::new(versions, metrics), fleet, vm)
    }

    fn serving(routes: &Routes) -> Vec<String> {
        let table = routes.table();
        let mut all: Vec<_> = table.routes().map(|one| one.version.id().to_string()).collect();
        all.sort();
        all
    }

    #[tokio::test]
    async fn what_another_gateway_changed_is_followed_and_what_it_left_is_not_touched() {
        let version = testing::version;
        let (routes, fleet, vm) = routes(vec![version("a", 1), version("b", 1), version("c", 3)]);
        let before = Arc::clone(routes.table().named("a").unwrap());
        let now = vec![version("a", 1), version("c", 2), version("d", 1)];
        routes.change().await.follow(now.clone(), &fleet);
        assert_eq!(serving(&routes), ["a@1", "c@2", "d@1"]);
        assert_eq!(vm.retired(), ["b@1", "c@3"]);
        assert!(Arc::ptr_eq(routes.table().named("a").unwrap(), &before));
        assert!(routes.table().named_in_host("b").is_none());

        let table = Arc::clone(&routes.table());
        routes.change().await.follow(now, &fleet);
        assert!(Arc::ptr_eq(&table, &routes.table()), "nothing differs, nothing is copied");
    }

    /// The table is copied for each change; this holds it to what that may cost.
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
