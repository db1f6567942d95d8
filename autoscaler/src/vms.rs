//! What the autoscaler needs of the gateway: reports, drains, the leader's lease. A trait, so that
//! the loop can be tested without a fleet; the gateway implements it over its fleet and store.

use async_trait::async_trait;
use epsilon_api::{
    ids::VmId,
    units::Bytes,
    vm::{InstanceStatus, VmStatus},
};
use epsilon_store::StoreError;
use std::{fmt, time::Duration};

/// Access to the fleet's VMs.
#[async_trait]
pub trait Vms: Send + Sync + fmt::Debug {
    /// The last reports of the VMs that respond.
    fn status(&self) -> Vec<VmStatus>;

    /// Memory of an instance, if its version is known.
    fn memory(&self, instance: &InstanceStatus) -> Option<Bytes>;

    /// The VMs that drain, by the store.
    async fn draining(&self) -> Result<Vec<VmId>, StoreError>;

    /// Records in the store that a VM drains or no longer does, and applies it. An unknown VM is
    /// fine.
    async fn drain(&self, vm: &VmId, draining: bool) -> Result<(), StoreError>;

    /// Whether this gateway is the leader, for the duration of the lease.
    async fn lead(&self, lease: Duration) -> Result<bool, StoreError>;
}
