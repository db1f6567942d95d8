//! The fleet: members (VMs and builders), gateways, VMs that drain. The trait and its types;
//! `sql/operations/fleet.rs` implements it.

use crate::{Key, StoreError};
use async_trait::async_trait;
use epsilon_api::{
    fleet::Join,
    ids::{GatewayId, VmId},
};
use jiff::Timestamp;
use std::fmt;

/// A VM or a builder that joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it reported of itself.
    pub join: Join,
    /// When it joined last.
    pub joined_at: Timestamp,
    /// Time of its last heartbeat.
    pub seen_at: Timestamp,
}

/// A gateway of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its id.
    pub id: GatewayId,
    /// Public key that verifies its tokens: 64 hexadecimal digits.
    pub public_key: String,
    /// Where members reach its control listener.
    pub control_url: String,
    /// Time of its last heartbeat.
    pub seen_at: Timestamp,
}

/// The fleet: members (VMs and builders), gateways, VMs that drain. As [`Store`](crate::Store)
/// says, each method is one transaction.
#[async_trait]
pub trait FleetStore: Send + Sync + fmt::Debug {
    /// Records that a VM drains, or that it no longer does.
    async fn set_draining(&self, vm: &VmId, draining: bool) -> Result<(), StoreError>;

    /// The VMs that drain.
    async fn draining(&self) -> Result<Vec<VmId>, StoreError>;

    /// Registers a member, or registers it again: its earlier entry and key are replaced.
    async fn join(&self, member: &Member, key: &Key) -> Result<(), StoreError>;

    /// Records a member's heartbeat.
    async fn member_heartbeat(&self, id: &VmId, now: Timestamp) -> Result<(), StoreError>;

    /// Removes a member and its key. Whether it drains stays recorded: it may come back.
    /// Idempotent.
    async fn leave(&self, id: &VmId) -> Result<(), StoreError>;

    /// The members by id, silent ones included.
    async fn members(&self) -> Result<Vec<Member>, StoreError>;

    /// Records a gateway's heartbeat, public key and address.
    async fn gateway_heartbeat(&self, gateway: &Gateway) -> Result<(), StoreError>;

    /// The gateways by id. One that has been silent for a month is removed when a new one sends its
    /// first heartbeat.
    async fn gateways(&self) -> Result<Vec<Gateway>, StoreError>;

    /// Removes a gateway that has been silent since `silent_before`: members no longer accept its
    /// tokens. Returns whether it did.
    async fn forget_gateway(
        &self,
        id: &GatewayId,
        silent_before: Timestamp,
    ) -> Result<bool, StoreError>;
}
