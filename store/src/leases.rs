//! Which gateway does what only one of them may do. The trait and its types;
//! `sql/operations/leases.rs` implements it.

use crate::StoreError;
use async_trait::async_trait;
use epsilon_api::ids::GatewayId;
use jiff::Timestamp;
use std::{fmt, time::Duration};

/// Which gateway does what only one of them may do. As [`Store`](crate::Store) says, each method is
/// one transaction.
#[async_trait]
pub trait LeaseStore: Send + Sync + fmt::Debug {
    /// Whether this gateway is the one that does `role` from `now` for the length of `lease`. It
    /// stays so as long as it requests the lease again before that; otherwise the next one that
    /// does takes over.
    ///
    /// Clocks of gateways may differ by as much as `lease`. A lease that ends later than that
    /// allows was given by a clock that had jumped, and counts as expired.
    async fn lead(
        &self,
        gateway: &GatewayId,
        role: &str,
        lease: Duration,
        now: Timestamp,
    ) -> Result<bool, StoreError>;
}
