//! Keys of gateways and members, by the hash of their secret. The trait and its types;
//! `sql/operations/keys.rs` implements it.

use crate::{Page, Paged, StoreError};
use async_trait::async_trait;
use epsilon_api::ids::{GatewayId, VmId};
use jiff::Timestamp;
use std::fmt;

/// What a key authorizes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyRole {
    /// Use of the control API.
    Admin,
    /// Joining the fleet as a VM.
    Fleet,
    /// Joining the fleet as a builder.
    Builder,
    /// Requests of this member of the fleet.
    Member(VmId),
}

/// A key without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The part of the key that identifies it; not secret.
    pub id: String,
    /// What it authorizes.
    pub role: KeyRole,
    /// SHA-256 of the secret, in hexadecimal.
    pub hash: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A key of a gateway, and whether that gateway is still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedKey {
    /// The key.
    pub key: Key,
    /// The gateway that has it in its file; none in rows of the first release.
    pub owner: Option<GatewayId>,
    /// Time of that gateway's last heartbeat; none when it is not known any more.
    pub owner_seen_at: Option<Timestamp>,
}

impl OwnedKey {
    /// When its owner was seen last: the last heartbeat, or else the key's creation.
    pub fn last_seen_at(&self) -> Timestamp {
        self.owner_seen_at.unwrap_or(self.key.created_at)
    }
}

/// Keys of gateways and members, by the hash of their secret. As [`Store`](crate::Store) says, each
/// method is one transaction.
#[async_trait]
pub trait KeyStore: Send + Sync + fmt::Debug {
    /// Makes this the gateway's key of its role, in place of the one that it had before. Keys of
    /// other gateways stay valid: each gateway has its own, and every gateway accepts all of them.
    /// A key that several gateways have in their files belongs to the first of them until that one
    /// has been silent since `silent_before`. Returns whether the key was not known before.
    async fn replace_key(
        &self,
        gateway: &GatewayId,
        key: &Key,
        silent_before: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Assigns a key to this gateway if it has no owner, or one that has been silent since
    /// `silent_before`. Returns whether it did.
    async fn adopt_key(
        &self,
        gateway: &GatewayId,
        key: &Key,
        silent_before: Timestamp,
    ) -> Result<bool, StoreError>;

    /// The key with this id.
    async fn key(&self, id: &str) -> Result<Option<Key>, StoreError>;

    /// The keys of gateways, by id; none of members.
    async fn keys(&self, page: &Page) -> Result<Paged<OwnedKey>, StoreError>;

    /// Removes a gateway's key: no gateway accepts it any more. Refused when its gateway sent a
    /// heartbeat since `silent_before`, if that is given.
    async fn remove_key(
        &self,
        id: &str,
        silent_before: Option<Timestamp>,
    ) -> Result<OwnedKey, StoreError>;
}
