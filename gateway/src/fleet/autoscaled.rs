//! The fleet as the autoscaler sees it: reports of VMs, drains, the leader's lease in the store.

use crate::fleet::Fleet;
use crate::fleet::health::Standing;
use crate::reconcile::drain_prewarm::DrainPrewarm;
use crate::routes::Routes;
use async_trait::async_trait;
use epsilon_api::{
    ids::{GatewayId, VmId},
    units::Bytes,
    vm::{InstanceStatus, VmStatus},
};
use epsilon_autoscaler::Vms;
use epsilon_store::{Store, StoreError};
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};

/// Name of the role for which gateways take a lease in the store.
const ROLE: &str = "autoscaler";

/// The gateway's VMs.
#[derive(Debug)]
pub(crate) struct FleetVms {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) drain_prewarm: DrainPrewarm,
    pub(crate) store: Arc<dyn Store>,
    /// Id of this gateway.
    pub(crate) me: GatewayId,
}

#[async_trait]
impl Vms for FleetVms {
    fn status(&self) -> Vec<VmStatus> {
        let members = self.fleet.members();
        let reporting = members.iter().filter(|member| match member.standing() {
            Standing::Up | Standing::Suspect => member.view().has_reported,
            Standing::Out(_) => false,
        });
        reporting.map(|member| member.vm.status()).collect()
    }

    /// By the active version: an older version that still runs most likely has the same memory.
    fn memory(&self, instance: &InstanceStatus) -> Option<Bytes> {
        let table = self.routes.table();
        table.named(instance.function.as_str()).map(|route| route.version.spec.memory)
    }

    async fn draining(&self) -> Result<Vec<VmId>, StoreError> {
        self.store.draining().await
    }

    /// Writes to the store first, like the control API's drain: the drain survives this gateway.
    async fn drain(&self, vm: &VmId, draining: bool) -> Result<(), StoreError> {
        let member = self.fleet.member(vm);
        // What it holds before the drain; soon it holds nothing.
        let holds = member.as_ref().map(|member| member.vm.status());
        self.store.set_draining(vm, draining).await?;
        if let (Some(member), Some(holds)) = (member, holds)
            && member.drain(draining)
            && draining
        {
            self.drain_prewarm.begin(holds);
        }
        Ok(())
    }

    async fn lead(&self, lease: Duration) -> Result<bool, StoreError> {
        self.store.lead(&self.me, ROLE, lease, Timestamp::now()).await
    }
}
