//! What the autoscaler needs of the rest of the gateway: reports, drains, the leader's lease. A trait, so
//! that the loop is tested without a fleet; [`FleetVms`] is the gateway's own.

use crate::{
    fleet::{Fleet, handover::Handover, health::Standing},
    routes::Routes,
};
use async_trait::async_trait;
use epsilon_api::{
    ids::{GatewayId, VmId},
    units::Bytes,
    vm::{InstanceStatus, VmStatus},
};
use epsilon_store::{Store, StoreError};
use jiff::Timestamp;
use std::{fmt, sync::Arc, time::Duration};

/// What one gateway of several may do alone, as the store knows it.
const ROLE: &str = "autoscaler";

/// See the module.
#[async_trait]
pub(crate) trait Vms: Send + Sync + fmt::Debug {
    /// What the VMs said of themselves last; only those that are heard of.
    fn status(&self) -> Vec<VmStatus>;

    /// Memory that an instance was given, where its version is known.
    fn memory(&self, instance: &InstanceStatus) -> Option<Bytes>;

    /// The VMs that drain, by the store.
    async fn draining(&self) -> Result<Vec<VmId>, StoreError>;

    /// Notes in the store that a VM drains, or does no more, and tells the VM. One that is not there is fine.
    async fn drain(&self, vm: &VmId, draining: bool) -> Result<(), StoreError>;

    /// Whether this gateway is the one that acts, for the length of the lease.
    async fn lead(&self, lease: Duration) -> Result<bool, StoreError>;
}

/// The gateway's VMs.
#[derive(Debug)]
pub(crate) struct FleetVms {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) handover: Handover,
    pub(crate) store: Arc<dyn Store>,
    /// This gateway.
    pub(crate) me: GatewayId,
}

#[async_trait]
impl Vms for FleetVms {
    fn status(&self) -> Vec<VmStatus> {
        let members = self.fleet.members();
        let heard = members.iter().filter(|member| match member.standing() {
            Standing::Up | Standing::Suspect => member.view().is_heard,
            Standing::Out(_) => false,
        });
        heard.map(|member| member.vm.status()).collect()
    }

    /// By the version that serves: an older one that still runs was most likely given the same.
    fn memory(&self, instance: &InstanceStatus) -> Option<Bytes> {
        let table = self.routes.table();
        table.named(instance.function.as_str()).map(|route| route.version.spec.memory)
    }

    async fn draining(&self) -> Result<Vec<VmId>, StoreError> {
        self.store.draining().await
    }

    /// In the order of the control API's drain: what is noted survives this gateway.
    async fn drain(&self, vm: &VmId, draining: bool) -> Result<(), StoreError> {
        let member = self.fleet.member(vm);
        // What it holds now: soon it holds nothing.
        let holds = member.as_ref().map(|member| member.vm.status());
        self.store.set_draining(vm, draining).await?;
        if let (Some(member), Some(holds)) = (member, holds)
            && member.drain(draining)
            && draining
        {
            self.handover.begin(holds);
        }
        Ok(())
    }

    async fn lead(&self, lease: Duration) -> Result<bool, StoreError> {
        self.store.lead(&self.me, ROLE, lease, Timestamp::now()).await
    }
}
