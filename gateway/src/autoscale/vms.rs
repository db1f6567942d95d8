//! What the autoscaler needs of the rest of the gateway: reports, drains, the leader's lease. A trait, so
//! that the loop is tested without a fleet; the one implementation stands over `Fleet`, `Routes` and the store.

use async_trait::async_trait;
use epsilon_api::{
    ids::VmId,
    units::Bytes,
    vm::{InstanceStatus, VmStatus},
};
use epsilon_store::StoreError;
use std::{fmt, time::Duration};

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
