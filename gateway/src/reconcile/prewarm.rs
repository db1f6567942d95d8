//! Background prewarming. While a call is served elsewhere, the VM that the ring prefers for the
//! function is prepared for later calls:
//!
//! - [`Errand::Fetch`] pulls the image. A call whose home VM lacks the image goes to a neighbour
//!   that has it and does not wait for the pull; without the prewarm the function would stay there,
//!   and a new VM would never get its share.
//! - [`Errand::Ready`] starts an instance. A call whose home VM is warm but over its bound stays
//!   there and does not wait for a cold start next door; without the prewarm the function would
//!   never spread.
//!
//! Each runs once per VM and version, with a limit on how many run at a time; what exceeds the
//! limit is left to a later call. No call waits for a prewarm. An instance started for a version
//! that no longer serves is idle and ages out like any other.

use crate::fleet::Member;
use crate::fleet::view::VersionKey;
use crate::observe::placement::PlacementMetrics;
use crate::placement::choice::Errand;
use crate::routes::Route;
use epsilon_api::{chain::Chain, ids::VmId};
use parking_lot::Mutex;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Concurrent image pulls; agents limit their pulls as well.
const FETCHES: usize = 32;
/// Concurrent starts: they compete with the starts that calls wait for.
const STARTS: usize = 8;
/// Cool-down before the same prewarm may run again: by then the VM's next report shows its result,
/// and a failing registry or engine is not retried with every call. The slot stays occupied during
/// the cool-down.
const PAUSE: Duration = Duration::from_secs(10);

type Work = (Errand, VmId, VersionKey);

/// Runs prewarms; one per gateway.
#[derive(Debug)]
pub(crate) struct Errands {
    at_work: Arc<Mutex<HashSet<Work>>>,
    stop: CancellationToken,
}

impl Errands {
    /// No prewarms yet; cancelling `stop` ends all of them.
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self { at_work: Arc::default(), stop }
    }

    /// Starts a prewarm of this VM for the function, unless the same one runs or the limit is
    /// reached.
    pub(crate) fn begin(
        &self,
        errand: Errand,
        member: Arc<Member>,
        route: &Route,
        metrics: &PlacementMetrics,
    ) {
        // A VM that is made ready keeps `minInstances` from then on, and those belong on the VMs
        // that the deployment chose.
        if errand == Errand::Ready && route.version.spec.min_instances > 0 {
            return;
        }
        let work = (errand, member.id.clone(), route.key);
        {
            let mut at_work = self.at_work.lock();
            if at_work.contains(&work) {
                return;
            }
            if at_work.iter().filter(|(kind, ..)| *kind == errand).count() >= most(errand) {
                return;
            }
            at_work.insert(work.clone());
        }
        metrics.errand(errand);
        let at_work = Arc::clone(&self.at_work);
        let version = Arc::clone(&route.version);
        // Not tracked: nothing waits for it, and it ends with the gateway.
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(async move {
            let done = match errand {
                Errand::Fetch => member.vm.fetch(Arc::clone(&version)).await,
                Errand::Ready => member.vm.ensure_ready(Arc::clone(&version)).await,
            };
            if let Err(err) = done {
                let function = &version.function;
                let vm = &member.id;
                let error = Chain(&err);
                tracing::debug!(%function, %vm, ?errand, %error, "Prewarming failed; a later call may try again.");
            }
            tokio::time::sleep(PAUSE).await;
            at_work.lock().remove(&work);
        }));
    }
}

fn most(errand: Errand) -> usize {
    match errand {
        Errand::Fetch => FETCHES,
        Errand::Ready => STARTS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fleet::Care,
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
        let member = Arc::new(Member::at_home(Arc::clone(&vm) as _, &Care::default()));
        let stop = CancellationToken::new();
        let errands = Errands::new(stop.clone());
        let begin = |errand, name: &str| {
            let route = Arc::clone(routes.table().named(name).unwrap());
            errands.begin(errand, Arc::clone(&member), &route, &metrics.placement);
        };
        for _ in 0..3 {
            begin(Errand::Ready, "f0");
            begin(Errand::Fetch, "f0");
        }
        settle().await;
        assert_eq!((vm.ready(), vm.fetched()), (vec!["f0@1".to_owned()], 1));

        for n in 0..20 {
            begin(Errand::Ready, &format!("f{n}"));
            begin(Errand::Fetch, &format!("f{n}"));
        }
        settle().await;
        assert_eq!((vm.ready().len(), vm.fetched()), (STARTS, 20));

        advance(PAUSE).await;
        settle().await;
        begin(Errand::Ready, "f0");
        settle().await;
        assert_eq!(vm.ready().len(), STARTS + 1, "it may run again after the pause");

        stop.cancel();
        begin(Errand::Ready, "f1");
        settle().await;
        assert_eq!(vm.ready().len(), STARTS + 1, "stopped");
    }
}
