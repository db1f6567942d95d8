//! What is brought to a VM behind a call that went elsewhere, so that later ones can go there and wait for nothing.
//!
//! - [`Errand::Fetch`]: the image. A call whose home lacks it goes next door, where it lies, and does not wait for a pull; without
//!   this the function would stay there, and a VM that has just come would never get its share.
//! - [`Errand::Ready`]: an instance. A call whose home is over its bound and warm stays there, and does not wait for a start next door;
//!   without this the function would never spread.
//!
//! Each once for a VM and a version, so many at a time; what does not fit in is left to a later call. Nobody waits for any of it. An
//! instance that comes up for a version that serves no more is idle, and goes as others do.

use crate::{
    call::place::choice::Errand,
    fleet::{Member, view::VersionKey},
    observe::placement::PlacementMetrics,
    routes::Route,
};
use epsilon_api::{chain::Chain, ids::VmId};
use parking_lot::Mutex;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Fetches at once; agents pull a few at once anyway.
const FETCHES: usize = 32;
/// Starts at once: they compete with those that calls wait for.
const STARTS: usize = 8;
/// After an errand the same one is not begun again for so long: the VM's next report shows what came of it, and a
/// registry or an engine that fails is not asked with each call. It takes its place among those at once until then.
const PAUSE: Duration = Duration::from_secs(10);

type Work = (Errand, VmId, VersionKey);

/// See the module.
#[derive(Debug)]
pub(crate) struct Errands {
    at_work: Arc<Mutex<HashSet<Work>>>,
    stop: CancellationToken,
}

impl Errands {
    /// None so far; all end with `stop`.
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self { at_work: Arc::default(), stop }
    }

    /// Begins to bring this VM what it lacks of the function, unless that is under way.
    pub(crate) fn begin(
        &self,
        errand: Errand,
        member: Arc<Member>,
        route: &Route,
        metrics: &PlacementMetrics,
    ) {
        // A VM that is to be ready has `minInstances` from then on. Those are for the VMs that a deployment asked.
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
        let (at_work, version) = (Arc::clone(&self.at_work), Arc::clone(&route.version));
        // Not tracked: nobody waits for it, and it ends with the gateway.
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(async move {
            let done = match errand {
                Errand::Fetch => member.vm.fetch(Arc::clone(&version)).await,
                Errand::Ready => member.vm.ensure_ready(Arc::clone(&version)).await,
            };
            if let Err(err) = done {
                let (function, vm, error) = (&version.function, &member.id, Chain(&err));
                tracing::debug!(%function, %vm, ?errand, %error, "Not brought ahead.");
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

    /// Lets everything run that can.
    async fn settle() {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_errand_is_done_once_and_not_too_many_at_a_time() {
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
        assert_eq!(vm.ready().len(), STARTS + 1, "after the pause again");

        stop.cancel();
        begin(Errand::Ready, "f1");
        settle().await;
        assert_eq!(vm.ready().len(), STARTS + 1, "not any more");
    }
}
