//! Finds instances of versions that no longer serve and would stay, and has their VMs remove them.
//! Normally a version is retired when the next one serves; but a gateway may die between the two,
//! and a restarted agent adopts the instances that it finds. Only what stays so for long is
//! touched: a version that is being deployed has instances before it serves, and Only versions that
//! have been in this state for long are retired: a version that is being deployed has instances
//! before it serves, and this gateway may be the last to learn of a rollback. And only instances
//! that do not go by themselves: a stored version may get calls by its address through another
//! gateway, and without calls its instances are idle and age out.

use crate::fleet::Fleet;
use crate::routes::version_cache::VersionCache;
use crate::routes::{Routes, Table};
use epsilon_api::{
    error::CallError,
    ids::{VersionId, VmId},
    vm::VmStatus,
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior, interval};

const CHECK_EVERY: Duration = Duration::from_secs(15);
/// Grace for a version older than the active one: longer than a change takes to reach all gateways.
const OLDER_GRACE: Duration = Duration::from_secs(60);

/// Since when a version has instances on a VM without serving.
type FirstSeen = HashMap<(VmId, VersionId), Instant>;

/// Runs until it is dropped. `deployments` is the time limit of a deployment.
pub(crate) async fn sweep(
    routes: Arc<Routes>,
    fleet: Arc<Fleet>,
    version_cache: Arc<VersionCache>,
    deployments: Duration,
) {
    let mut check = interval(CHECK_EVERY);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut first_seen = FirstSeen::new();
    loop {
        check.tick().await;
        let reports: Vec<_> = fleet.members().iter().map(|member| member.vm.status()).collect();
        let overdue_instances =
            overdue(&mut first_seen, &routes.table(), &reports, Instant::now(), deployments);
        for (vm, version) in overdue_instances {
            if expires_by_itself(&routes, &version_cache, &version).await {
                continue;
            }
            // Holds the lock of the routing table: no version is activated while it is retired.
            let _change = routes.change().await;
            if is_served(&routes.table(), &version) {
                continue;
            }
            tracing::info!(%vm, %version, "Version does not serve any more; removing its instances from a VM.");
            if let Some(member) = fleet.member(&vm) {
                member.vm.retire(&version);
            }
        }
    }
}

/// Whether the version's instances go without being retired: it is stored and has no
/// `minInstances`, or it was called here a moment ago.
async fn expires_by_itself(
    routes: &Routes,
    version_cache: &VersionCache,
    version: &VersionId,
) -> bool {
    let VersionId { function, number } = version;
    if version_cache.is_called(function.as_str(), *number) {
        return true;
    }
    let Some(serving) = routes.table().named(function.as_str()).cloned() else { return false };
    match version_cache.find(&serving, *number).await {
        Ok(found) => found.version.spec.min_instances == 0,
        Err(CallError::VersionNotFound { .. }) => false,
        // The store is unavailable, so nothing is known; the next round tries again.
        Err(_) => true,
    }
}

fn is_served(table: &Table, version: &VersionId) -> bool {
    table.serving(version.function.as_str(), version.number).is_some()
}

/// Records the stray versions in these reports, and returns those that have been there for too
/// long.
fn overdue(
    first_seen: &mut FirstSeen,
    table: &Table,
    reports: &[VmStatus],
    now: Instant,
    deployments: Duration,
) -> Vec<(VmId, VersionId)> {
    let mut there: HashMap<(VmId, VersionId), Duration> = HashMap::new();
    for report in reports {
        for instance in &report.instances {
            let id = VersionId { function: instance.function.clone(), number: instance.version };
            let serves = table.named(id.function.as_str()).map(|route| route.version.number);
            let grace = match serves {
                _ if is_served(table, &id) => continue,
                Some(number) if id.number < number => OLDER_GRACE,
                // Newer, or of a new function: it may be about to serve.
                Some(_) | None => deployments,
            };
            there.insert((report.id.clone(), id), grace);
        }
    }
    first_seen.retain(|stray, _| there.contains_key(stray));
    let overdue_instances = there.into_iter().filter(|(stray, grace)| {
        let since = *first_seen.entry(stray.clone()).or_insert(now);
        now.duration_since(since) >= *grace
    });
    let overdue_instances: HashSet<_> = overdue_instances.map(|(stray, _)| stray).collect();
    first_seen.retain(|stray, _| !overdue_instances.contains(stray));
    overdue_instances.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        observe::metrics::Metrics,
        testing::{self, FakeVm},
    };
    use epsilon_api::{
        build::{Built, BuiltFunction},
        function::{ImageRef, Version},
        ids::{DeploymentId, FunctionName, GatewayId, ProjectName, VersionNumber},
    };
    use jiff::Timestamp;
    use prometheus::Registry;

    const DEPLOYMENTS: Duration = Duration::from_secs(1800);

    /// A VM with an instance of each of these versions.
    fn report(versions: &[(&str, u32)]) -> VmStatus {
        let vm = FakeVm::new("a");
        for (function, number) in versions {
            vm.ready.lock().unwrap().push(testing::version(function, *number).id());
        }
        epsilon_api::vm::Vm::status(&*vm)
    }

    /// The overdue versions at these seconds of the same report, with `pay@3` serving.
    fn after(versions: &[(&str, u32)], seconds: &[u64]) -> Vec<String> {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let routes = Routes::new(vec![testing::version("pay", 3)], Vec::new(), metrics);
        let mut first_seen = FirstSeen::new();
        let start = Instant::now();
        let mut found = Vec::new();
        for second in seconds {
            let now = start + Duration::from_secs(*second);
            let table = routes.table();
            let overdue_instances =
                overdue(&mut first_seen, &table, &[report(versions)], now, DEPLOYMENTS);
            found.extend(
                overdue_instances.into_iter().map(|(_, version)| format!("{version} at {second}")),
            );
        }
        found
    }

    macro_rules! swept {
        ($($name:ident: $versions:expr, $seconds:expr => $want:expr;)*) => {$(
            #[tokio::test]
            async fn $name() {
                let want: &[&str] = &$want;
                assert_eq!(after(&$versions, &$seconds), want);
            }
        )*};
    }

    swept! {
        what_serves_stays: [("pay", 3)], [0, 60, 9999] => [];
        an_older_version_goes_after_a_minute: [("pay", 2)], [0, 59, 60] => ["pay@2 at 60"];
        an_instance_that_stays_is_stopped_again: [("pay", 2)], [0, 60, 75, 135] => ["pay@2 at 60", "pay@2 at 135"];
        a_newer_one_may_be_on_its_way: [("pay", 4)], [0, 1799, 1800] => ["pay@4 at 1800"];
        so_may_a_new_function: [("ship", 1)], [0, 60, 1800] => ["ship@1 at 1800"];
    }

    #[tokio::test]
    async fn a_returning_stray_gets_its_grace_again() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let routes = Routes::new(vec![testing::version("pay", 3)], Vec::new(), metrics);
        let mut first_seen = FirstSeen::new();
        let start = Instant::now();
        let mut at = |second: u64, versions: &[(&str, u32)]| {
            let now = start + Duration::from_secs(second);
            overdue(&mut first_seen, &routes.table(), &[report(versions)], now, DEPLOYMENTS).len()
        };
        assert_eq!(at(0, &[("pay", 2)]), 0);
        assert_eq!(at(50, &[]), 0);
        assert_eq!(at(60, &[("pay", 2)]), 0);
        assert_eq!(at(120, &[("pay", 2)]), 1);
    }

    #[tokio::test]
    async fn only_what_would_stay_is_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epsilon.db");
        let store = epsilon_store::open(path.to_str().unwrap()).await.unwrap();
        let me = GatewayId::random();
        // 1 has no `minInstances`, 2 does, 3 serves.
        let mut serving: Option<Version> = None;
        for (digest, min_instances) in [("a", 0), ("b", 1), ("c", 0)] {
            let id = DeploymentId::random();
            store.begin_deployment(&id, &me, Timestamp::now()).await.unwrap();
            let mut spec = testing::spec("pay");
            spec.min_instances = min_instances;
            let image = ImageRef { reference: format!("pay:{digest}"), digest: digest.to_owned() };
            let name = FunctionName::parse("pay").unwrap();
            let functions = vec![BuiltFunction { name, spec, image, parts: None }];
            let built = Built { project: ProjectName::parse("shop").unwrap(), functions };
            let prepared = store.prepare(&id, &built, Timestamp::now()).await.unwrap();
            store.activate(&id, Timestamp::now()).await.unwrap();
            serving = prepared.into_iter().next().map(|one| one.version);
        }
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let routes = Routes::new(vec![serving.unwrap()], Vec::new(), metrics);
        let mut goes = Vec::new();
        for (function, number) in [("pay", 1), ("pay", 2), ("pay", 9), ("ship", 1)] {
            let number = VersionNumber::new(number).unwrap();
            let id = VersionId { function: FunctionName::parse(function).unwrap(), number };
            let version_cache = VersionCache::new(Arc::clone(&store));
            goes.push(expires_by_itself(&routes, &version_cache, &id).await);
        }
        assert_eq!(
            goes,
            [true, false, false, false],
            "stored, stored with minInstances, unknown, deleted"
        );
        // A version that was looked up a moment ago may have been called.
        let version_cache = VersionCache::new(store);
        let id = testing::version("pay", 2).id();
        assert!(!expires_by_itself(&routes, &version_cache, &id).await);
        assert!(expires_by_itself(&routes, &version_cache, &id).await);
    }
}
