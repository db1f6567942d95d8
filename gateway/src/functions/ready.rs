//! Starts instances of a version before it gets calls, as a deployment does: no caller waits for a
//! pull, and a version that does not load gets no calls at all. Also keeps the `minInstances` of a
//! version that serves.

use crate::{fleet::Fleet, observe::events::WarmUpFailed, routes::Routes};
use epsilon_api::{
    error::{Fault, VmError},
    function::Version,
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Versions started for a change. Finish with [`Started::settle`].
#[derive(Debug)]
pub(crate) struct Started<'a> {
    routes: &'a Routes,
    fleet: &'a Fleet,
    versions: Vec<Arc<Version>>,
}

impl<'a> Started<'a> {
    pub(crate) fn new(routes: &'a Routes, fleet: &'a Fleet) -> Self {
        Self { routes, fleet, versions: Vec::new() }
    }

    /// Ensures that a VM has an instance of the version; `limit` is the longest that one VM may
    /// take.
    pub(crate) async fn ensure(
        &mut self,
        version: Version,
        limit: Duration,
    ) -> Result<(), VmError> {
        if self.routes.table().serves(&version) {
            return Ok(());
        }
        let version = Arc::new(version);
        self.versions.push(Arc::clone(&version));
        let order = self.fleet.snapshot().order(&version.function);
        let mut last = no_capacity(&version, "no VM takes calls".into());
        for member in order {
            match timeout(limit, member.vm.ensure_ready(Arc::clone(&version))).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(err)) if err.verdict().fault == Fault::Platform => last = err,
                Ok(Err(err)) => return Err(err), // the code would fail on every VM
                Err(_) => {
                    let limit = humantime::format_duration(limit);
                    last =
                        no_capacity(&version, format!("the start took longer than {limit}").into());
                }
            }
        }
        Err(last)
    }

    /// Called after the change was made or failed: retires the started versions that do not serve.
    pub(crate) async fn settle(self) {
        let change = self.routes.change().await;
        for version in &self.versions {
            change.retire_unless_active(version, self.fleet);
        }
    }
}

fn no_capacity(version: &Version, cause: epsilon_api::error::Cause) -> VmError {
    VmError::NoCapacity { function: version.function.clone(), cause }
}

/// Has the first VM keep the function's `minInstances`; returns whether it does. A failure is
/// logged, and the first call starts the instance. A version that no longer serves when its
/// instances are ready is retired again.
pub(crate) async fn ensure_min_instances(
    routes: &Routes,
    fleet: &Fleet,
    version: &Arc<Version>,
) -> bool {
    let order = fleet.snapshot().order(&version.function);
    let Some(home) = order.first() else { return false };
    let done = home.vm.ensure_ready(Arc::clone(version)).await;
    if let Err(error) = &done {
        WarmUpFailed { function: &version.function, error }.emit();
    }
    routes.change().await.retire_unless_active(version, fleet);
    done.is_ok()
}
