//! [`FleetStore`] in SQL: the transaction, the time limit and the announcement around the
//! statements of `sql/members.rs`, `sql/gateways.rs`.

use crate::{
    Change, FleetStore, Gateway, Key, Member, StoreError,
    sql::{Sql, gateways, members},
};
use async_trait::async_trait;
use epsilon_api::ids::{GatewayId, VmId};
use jiff::Timestamp;

#[async_trait]
impl FleetStore for Sql {
    async fn set_draining(&self, vm: &VmId, draining: bool) -> Result<(), StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            members::set_draining(&mut tx, vm, draining).await?;
            self.commit(tx, Change::Draining).await
        })
        .await
    }

    async fn draining(&self) -> Result<Vec<VmId>, StoreError> {
        self.with_limit(members::draining(&self.read)).await
    }

    async fn join(&self, member: &Member, key: &Key) -> Result<(), StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            members::join(&mut tx, member, key).await?;
            self.commit(tx, Change::Members).await
        })
        .await
    }

    async fn member_heartbeat(&self, id: &VmId, now: Timestamp) -> Result<(), StoreError> {
        self.with_limit(members::heartbeat(&self.write, id, now)).await
    }

    async fn leave(&self, id: &VmId) -> Result<(), StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            members::leave(&mut tx, id).await?;
            self.commit(tx, Change::Members).await
        })
        .await
    }

    async fn members(&self) -> Result<Vec<Member>, StoreError> {
        self.with_limit(members::list(&self.read)).await
    }

    async fn gateway_heartbeat(&self, gateway: &Gateway) -> Result<(), StoreError> {
        self.with_limit(async {
            if gateways::heartbeat(&self.write, gateway).await? {
                return Ok(());
            }
            let mut tx = self.begin().await?;
            gateways::upsert(&mut tx, gateway).await?;
            self.commit(tx, Change::Members).await
        })
        .await
    }

    async fn gateways(&self) -> Result<Vec<Gateway>, StoreError> {
        self.with_limit(gateways::list(&self.read)).await
    }

    async fn forget_gateway(
        &self,
        id: &GatewayId,
        silent_before: Timestamp,
    ) -> Result<bool, StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            let forgotten = gateways::forget(&mut tx, id, silent_before).await?;
            self.commit(tx, Change::Members).await?;
            Ok(forgotten)
        })
        .await
    }
}
