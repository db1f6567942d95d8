//! Maintains the `minInstances` of functions, on the VM that their calls try first. Checks
//! regularly, because VMs join and leave; sends orders only where instances are missing.

use crate::{
    fleet::{Fleet, view::VersionKey},
    functions::ready::ensure_min_instances,
    routes::{Route, Routes},
};
use futures_util::{StreamExt, stream};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Interval of checks; a lost VM takes some seconds to be noticed anyway.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// Concurrent starts.
const AT_ONCE: usize = 4;
/// Pauses between attempts to start a version that fails.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Runs until it is dropped. Input: the table and the reports. Output: orders to VMs.
pub(crate) async fn maintain(routes: Arc<Routes>, fleet: Arc<Fleet>) {
    let mut check = interval(CHECK_EVERY);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing: HashMap<VersionKey, (Instant, Duration)> = HashMap::new();
    loop {
        check.tick().await;
        let now = Instant::now();
        let missing: Vec<_> = missing(&routes, &fleet)
            .into_iter()
            .filter(|route| failing.get(&route.key).is_none_or(|(again_at, _)| now >= *again_at))
            .collect();
        let starts = stream::iter(missing).map(async |route| {
            (route.key, ensure_min_instances(&routes, &fleet, &route.version).await)
        });
        let done: Vec<_> = starts.buffer_unordered(AT_ONCE).collect().await;
        for (key, is_ready) in done {
            if is_ready {
                failing.remove(&key);
                continue;
            }
            let pause = failing.get(&key).map_or(FIRST_PAUSE, |(_, pause)| *pause * 2);
            let pause = pause.min(LONGEST_PAUSE);
            failing.insert(key, (Instant::now() + pause, pause));
        }
        let table = routes.table();
        failing.retain(|key, _| table.versions().any(|route| route.key == *key));
    }
}

/// Versions whose first VM has fewer instances than wanted.
fn missing(routes: &Routes, fleet: &Fleet) -> Vec<Arc<Route>> {
    let table = routes.table();
    let snapshot = fleet.snapshot();
    let wants = table.versions().filter(|route| route.version.spec.min_instances > 0);
    let is_missing = |route: &&Arc<Route>| {
        let order = snapshot.order(&route.version.function);
        let wanted = route.version.spec.min_instances;
        order.first().is_some_and(|home| home.view().warm(route.key).instances < wanted)
    };
    wants.filter(is_missing).cloned().collect()
}
