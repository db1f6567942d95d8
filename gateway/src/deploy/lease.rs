//! Deployments of one project go one after another on all gateways of a store: the one that has the project's lease is at
//! work, the others wait. The lease ends by itself when its gateway dies; what the store would not allow
//! (a later deployment overtaken by an earlier one) it refuses in any case.

use super::story::Story;
use epsilon_api::ids::{GatewayId, ProjectName};
use epsilon_store::{Store, StoreError};
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};
use tokio::{task::AbortHandle, time::sleep};

/// How long the others wait after a gateway that died, or lost its store, in the middle of a deployment.
const LEASE: Duration = Duration::from_secs(15);
/// Two renewals may fail.
const RENEW: Duration = Duration::from_secs(5);
/// How often a waiting gateway asks.
const ASK: Duration = Duration::from_millis(250);

/// The right of this gateway to deploy a project; given back when dropped.
#[derive(Debug)]
pub(super) struct Lease {
    store: Arc<dyn Store>,
    gateway: GatewayId,
    role: String,
    renewal: AbortHandle,
}

impl Lease {
    /// Waits until no other gateway deploys this project. Bounded by the deployment's own limit.
    pub(super) async fn take(
        store: &Arc<dyn Store>,
        gateway: &GatewayId,
        project: &ProjectName,
        story: &Story,
    ) -> Result<Self, StoreError> {
        let role = format!("deploy:{project}");
        let mut told = false;
        while !store.lead(gateway, &role, LEASE, Timestamp::now()).await? {
            if !told {
                story.line(format!(
                    "waiting for a deployment of project {project} on another gateway"
                ));
                told = true;
            }
            sleep(ASK).await;
        }
        let renewal = tokio::spawn(renew(Arc::clone(store), gateway.clone(), role.clone()));
        let (store, gateway) = (Arc::clone(store), gateway.clone());
        Ok(Self { store, gateway, role, renewal: renewal.abort_handle() })
    }
}

/// Ends with the lease.
async fn renew(store: Arc<dyn Store>, gateway: GatewayId, role: String) {
    loop {
        sleep(RENEW).await;
        // Lost to a clock or an outage: the activation's own transaction has the last word.
        if let Ok(false) = store.lead(&gateway, &role, LEASE, Timestamp::now()).await {
            tracing::warn!(role, "Another gateway has taken the lease over.");
            return;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewal.abort();
        // Outside of a runtime only while the process ends; then it ends by itself.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (store, gateway) = (Arc::clone(&self.store), self.gateway.clone());
        let role = std::mem::take(&mut self.role);
        runtime.spawn(async move {
            // A failure costs the others the rest of the lease.
            let _ = store.lead(&gateway, &role, Duration::ZERO, Timestamp::now()).await;
        });
    }
}
