//! Makes deployments of one project run one after another on all gateways of a store: the gateway
//! that holds the project's lease deploys, the others wait. The lease expires if its gateway dies.
//! Independently of the lease, the store refuses to let an earlier deployment overtake a later one.

use super::progress::Progress;
use epsilon_api::ids::{GatewayId, ProjectName};
use epsilon_store::{LeaseStore, StoreError};
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};
use tokio::{task::AbortHandle, time::sleep};

/// How long others wait after a gateway died, or lost its store, in the middle of a deployment.
const LEASE: Duration = Duration::from_secs(15);
/// Interval of renewals; two of them may fail.
const RENEW: Duration = Duration::from_secs(5);
/// How often a waiting gateway tries to get the lease.
const RETRY: Duration = Duration::from_millis(250);

/// The right of this gateway to deploy a project; released on drop.
#[derive(Debug)]
pub(super) struct ProjectLock {
    store: Arc<dyn LeaseStore>,
    gateway: GatewayId,
    role: String,
    renewal: AbortHandle,
}

impl ProjectLock {
    /// Waits until no other gateway deploys this project. Bounded by the deployment's own time
    /// limit.
    pub(super) async fn take(
        store: Arc<dyn LeaseStore>,
        gateway: &GatewayId,
        project: &ProjectName,
        progress: &Progress,
    ) -> Result<Self, StoreError> {
        let role = format!("deploy:{project}");
        let mut is_reported = false;
        while !store.lead(gateway, &role, LEASE, Timestamp::now()).await? {
            if !is_reported {
                progress.line(format!(
                    "waiting for a deployment of project {project} on another gateway"
                ));
                is_reported = true;
            }
            sleep(RETRY).await;
        }
        let renewal =
            tokio::spawn(renew(Arc::clone(&store), gateway.clone(), role.clone(), project.clone()));
        let gateway = gateway.clone();
        Ok(Self { store, gateway, role, renewal: renewal.abort_handle() })
    }
}

/// Renews the lease. Ends with it.
async fn renew(store: Arc<dyn LeaseStore>, gateway: GatewayId, role: String, project: ProjectName) {
    loop {
        sleep(RENEW).await;
        // A lease lost to a clock jump or an outage is harmless: the activation's transaction
        // decides.
        if let Ok(false) = store.lead(&gateway, &role, LEASE, Timestamp::now()).await {
            tracing::warn!(
                %project,
                "Another gateway deploys this project now; the store decides which deployment is activated."
            );
            return;
        }
    }
}

impl Drop for ProjectLock {
    fn drop(&mut self) {
        self.renewal.abort();
        // There is no runtime only while the process ends; then the lease expires.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let store = Arc::clone(&self.store);
        let gateway = self.gateway.clone();
        let role = std::mem::take(&mut self.role);
        runtime.spawn(async move {
            // If this fails, others wait for the rest of the lease.
            let _ = store.lead(&gateway, &role, Duration::ZERO, Timestamp::now()).await;
        });
    }
}
