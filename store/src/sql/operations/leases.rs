//! [`LeaseStore`] in SQL: the transaction, the time limit and the announcement around the
//! statements of `sql/gateways.rs`.

use crate::{
    LeaseStore, StoreError,
    sql::{Sql, gateways},
};
use async_trait::async_trait;
use epsilon_api::ids::GatewayId;
use jiff::Timestamp;
use std::time::Duration;

#[async_trait]
impl LeaseStore for Sql {
    async fn lead(
        &self,
        gateway: &GatewayId,
        role: &str,
        lease: Duration,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.with_limit(gateways::lead(&self.write, gateway, role, lease, now)).await
    }
}
