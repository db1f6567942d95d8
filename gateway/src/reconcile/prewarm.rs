//! Background prewarming. While a call is served elsewhere, the VM that the ring prefers for the
//! function is prepared for later calls:
//!
//! - [`Prewarm::PullImage`] pulls the image. A call whose home VM lacks the image goes to a
//!   neighbour that has it and does not wait for the pull; without the prewarm the function would
//!   stay there, and a new VM would never get its share.
//! - [`Prewarm::StartInstance`] starts an instance. A call whose home VM is warm but over its bound
//!   stays there and does not wait for a cold start at a neighbour; without the prewarm the
//!   function would never spread.
//!
//! Each runs once per VM and version, with a limit on how many run at a time; what exceeds the
//! limit is left to a later call. No call waits for a prewarm. An instance started for a version
//! that no longer serves is idle and ages out like any other.

use crate::fleet::Member;
use crate::fleet::view::VersionKey;
use crate::observe::placement::PlacementMetrics;
use crate::routes::Route;
use epsilon_api::{chain::Chain, ids::VmId};
use epsilon_placement::choice::Prewarm;
use parking_lot::Mutex;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Concurrent image pulls; agents limit their pulls as well.
const MAX_PULLS: usize = 32;
/// Concurrent starts: they compete with the starts that calls wait for.
const MAX_STARTS: usize = 8;
/// Cool-down before the same prewarm may run again: by then the VM's next report shows its result,
/// and a failing registry or engine is not retried with every call. The slot stays occupied during
/// the cool-down.
const COOL_DOWN: Duration = Duration::from_secs(10);

type PrewarmKey = (Prewarm, VmId, VersionKey);

/// Runs prewarms; one per gateway.
#[derive(Debug)]
pub(crate) struct Prewarmer {
    in_progress: Arc<Mutex<HashSet<PrewarmKey>>>,
    stop: CancellationToken,
}

impl Prewarmer {
    /// No prewarms yet; cancelling `stop` ends all of them.
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self { in_progress: Arc::default(), stop }
    }

    /// Starts a prewarm of this VM for the function, unless the same one runs or the limit is
    /// reached.
    pub(crate) fn begin(
        &self,
        prewarm: Prewarm,
        member: Arc<Member>,
        route: &Route,
        metrics: &PlacementMetrics,
    ) {
        // A VM that is made ready keeps `minInstances` from then on, and those belong on the VMs
        // that the deployment chose.
        if prewarm == Prewarm::StartInstance && route.version.spec.min_instances > 0 {
            return;
        }
        let work = (prewarm, member.id.clone(), route.key);
        {
            let mut in_progress = self.in_progress.lock();
            if in_progress.contains(&work) {
                return;
            }
            if in_progress.iter().filter(|(kind, ..)| *kind == prewarm).count()
                >= max_concurrent(prewarm)
            {
                return;
            }
            in_progress.insert(work.clone());
        }
        metrics.prewarm(prewarm);
        let in_progress = Arc::clone(&self.in_progress);
        let version = Arc::clone(&route.version);
        // Not tracked: nothing waits for it, and it ends with the gateway.
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(async move {
            let done = match prewarm {
                Prewarm::PullImage => member.vm.fetch(Arc::clone(&version)).await,
                Prewarm::StartInstance => member.vm.ensure_ready(Arc::clone(&version)).await,
            };
            if let Err(err) = done {
                let function = &version.function;
                let vm = &member.id;
                let error = Chain(&err);
                tracing::debug!(%function, %vm, ?prewarm, %error, "Prewarming failed; a later call may try again.");
            }
            tokio::time::sleep(COOL_DOWN).await;
            in_progress.lock().remove(&work);
        }));
    }
}

fn max_concurrent(prewarm: Prewarm) -> usize {
    match prewarm {
        Prewarm::PullImage => MAX_PULLS,
        Prewarm::StartInstance => MAX_STARTS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fleet::HealthPolicy,
        observe::metrics::Metrics,
        routes::Routes,
        testing::{self, FakeVm},
    };
    use tokio::time::advance;

    /// Runs all tasks that are ready.
    async fn settle() {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn prewarms_run_once_and_within_the_limit() {
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let versions = (0..20).map(|n| testing::version(&format!("f{n}"), 1)).collect();
        let routes = Routes::new(versions, Vec::new(), Arc::clone(&metrics));
        let vm = FakeVm::new("a");
        let member = Arc::new(Member::local(Arc::clone(&vm) as _, &HealthPolicy::default()));
        let stop = CancellationToken::new();
        let prewarmer = Prewarmer::new(stop.clone());
        let begin = |prewarm, name: &str| {
            let route = Arc::clone(routes.table().named(name).unwrap());
            prewarmer.begin(prewarm, Arc::clone(&member), &route, &metrics.placement);
        };
        for _ in 0..3 {
            begin(Prewarm::StartInstance, "f0");
            begin(Prewarm::PullImage, "f0");
        }
        settle().await;
        assert_eq!((vm.ready(), vm.fetched()), (vec!["f0@1".to_owned()], 1));

        for n in 0..20 {
            begin(Prewarm::StartInstance, &format!("f{n}"));
            begin(Prewarm::PullImage, &format!("f{n}"));
        }
        settle().await;
        assert_eq!((vm.ready().len(), vm.fetched()), (MAX_STARTS, 20));

        advance(COOL_DOWN).await;
        settle().await;
        begin(Prewarm::StartInstance, "f0");
        settle().await;
        assert_eq!(vm.ready().len(), MAX_STARTS + 1, "it may run again after the pause");

        stop.cancel();
        begin(Prewarm::StartInstance, "f1");
        settle().await;
        assert_eq!(vm.ready().len(), MAX_STARTS + 1, "stopped");
    }
}
