//! Prewarms other VMs when one drains: each version that was warm only on the draining VM gets an
//! instance on the VM that its calls try next, so that few calls wait for a cold start. Nothing
//! depends on it; a call that arrives first starts the same instance.

use crate::fleet::Fleet;
use crate::fleet::view::VersionKey;
use crate::{observe::events::WarmUpFailed, routes::Routes};
use epsilon_api::{function::Version, vm::VmStatus};
use futures_util::{StreamExt, stream};
use std::{collections::HashSet, sync::Arc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Concurrent starts. More would only queue on the VMs and delay the starts that calls wait for.
const AT_ONCE: usize = 4;

/// Starts the prewarms of draining VMs.
#[derive(Clone, Debug)]
pub(crate) struct DrainPrewarm {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) close: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl DrainPrewarm {
    /// Prewarms elsewhere the versions in this VM's last report. Returns at once.
    pub(crate) fn begin(&self, leaving: VmStatus) {
        let work = self.clone();
        let close = self.close.clone();
        self.tasks.spawn(close.run_until_cancelled_owned(async move { work.run(&leaving).await }));
    }

    async fn run(&self, leaving: &VmStatus) {
        let versions = self.held_only_by(leaving);
        if versions.is_empty() {
            return;
        }
        tracing::info!(vm = %leaving.id, versions = versions.len(), "VM drains; starting instances of its versions on other VMs.");
        let warm = async |version: Arc<Version>| {
            let order = self.fleet.snapshot().order(&version.function);
            let Some(next) = order.into_iter().find(|member| member.id != leaving.id) else {
                return;
            };
            if let Err(error) = next.vm.ensure_ready(Arc::clone(&version)).await {
                WarmUpFailed { function: &version.function, error: &error }.emit();
            }
        };
        stream::iter(versions).for_each_concurrent(AT_ONCE, warm).await;
    }

    /// Versions that serve, have an instance on this VM, and have none on another VM that takes
    /// calls.
    fn held_only_by(&self, leaving: &VmStatus) -> Vec<Arc<Version>> {
        let table = self.routes.table();
        let snapshot = self.fleet.snapshot();
        let elsewhere = |key: VersionKey| {
            let others = snapshot.members().iter().filter(|member| member.id != leaving.id);
            others
                .filter(|member| member.takes_calls())
                .any(|member| member.view().warm(key).instances > 0)
        };
        let mut seen = HashSet::new();
        let serving = leaving.instances.iter().filter_map(|instance| {
            let route = table.serving(instance.function.as_str(), instance.version)?;
            let is_new = seen.insert(route.key);
            (is_new && !elsewhere(route.key)).then(|| Arc::clone(&route.version))
        });
        serving.collect()
    }
}
