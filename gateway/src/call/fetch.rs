//! Images that are brought to a function's home behind its calls: a call whose home lacks the image goes next door, where it
//! lies, and does not wait for a pull; without this the function would stay there, and a VM that has just come would
//! never get its share.

use crate::{
    fleet::{Member, view::VersionKey},
    observe::placement::PlacementMetrics,
    routes::Route,
};
use epsilon_api::{chain::Chain, ids::VmId};
use parking_lot::Mutex;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Fetches at once. More wait for a later call; agents pull a few at once anyway.
const MOST: usize = 32;
/// After a fetch the same one is not begun again for so long: the VM's next report shows the image, and a
/// registry that fails is not asked with each call.
const PAUSE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(crate) struct Fetches {
    at_work: Arc<Mutex<HashSet<(VmId, VersionKey)>>>,
    stop: CancellationToken,
}

impl Fetches {
    /// None so far; all end with `stop`.
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self { at_work: Arc::default(), stop }
    }

    /// Begins to bring the function's image to this VM, unless that is under way.
    pub(crate) fn begin(&self, home: Arc<Member>, route: &Route, metrics: &PlacementMetrics) {
        let key = (home.id.clone(), route.key);
        {
            let mut at_work = self.at_work.lock();
            if at_work.len() >= MOST || !at_work.insert(key.clone()) {
                return;
            }
        }
        metrics.fetches.inc();
        let (at_work, version) = (Arc::clone(&self.at_work), Arc::clone(&route.version));
        // Not tracked: nobody waits for it, and it ends with the gateway.
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(async move {
            if let Err(err) = home.vm.fetch(Arc::clone(&version)).await {
                let (function, vm, error) = (&version.function, &home.id, Chain(&err));
                tracing::debug!(%function, %vm, %error, "Image not fetched ahead.");
            }
            tokio::time::sleep(PAUSE).await;
            at_work.lock().remove(&key);
        }));
    }
}
