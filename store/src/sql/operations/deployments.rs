//! [`DeploymentStore`] in SQL: the transaction, the time limit and the announcement around the
//! statements of `sql/deployments.rs`, `sql/hooks.rs`.

use crate::{
    Change, Delivery, Deployment, DeploymentStore, Page, Paged, Prepared, StoreError,
    sql::{DEPLOYMENT_TIMEOUT, Sql, deployments, hooks, with_timeout},
};
use async_trait::async_trait;
use epsilon_api::{
    build::Built,
    error::ErrorBody,
    ids::{DeploymentId, GatewayId},
};
use jiff::Timestamp;
use std::time::Duration;

#[async_trait]
impl DeploymentStore for Sql {
    async fn begin_deployment(
        &self,
        id: &DeploymentId,
        gateway: &GatewayId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.with_limit(deployments::begin(&self.write, id, gateway, now)).await
    }

    async fn begin_delivery(
        &self,
        delivery: &Delivery,
        gateway: &GatewayId,
        keep: Duration,
    ) -> Result<Option<DeploymentId>, StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            let earlier = hooks::begin(&mut tx, delivery, gateway, keep).await?;
            tx.commit().await?;
            Ok(earlier)
        })
        .await
    }

    async fn prepare(
        &self,
        id: &DeploymentId,
        built: &Built,
        now: Timestamp,
    ) -> Result<Vec<Prepared>, StoreError> {
        with_timeout(DEPLOYMENT_TIMEOUT, async {
            let mut tx = self.begin().await?;
            let prepared = deployments::prepare(&mut tx, id, built, now).await?;
            tx.commit().await?;
            Ok(prepared)
        })
        .await
    }

    async fn activate(&self, id: &DeploymentId, now: Timestamp) -> Result<Deployment, StoreError> {
        with_timeout(DEPLOYMENT_TIMEOUT, async {
            let mut tx = self.begin().await?;
            deployments::activate(&mut tx, id, now).await?;
            let deployment = deployments::get(&mut *tx, id).await?;
            self.commit(tx, Change::Routes).await?;
            Ok(deployment)
        })
        .await
    }

    async fn fail_deployment(
        &self,
        id: &DeploymentId,
        error: &ErrorBody,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            deployments::fail(&mut tx, id, error, now).await?;
            Ok(tx.commit().await?)
        })
        .await
    }

    async fn fail_unfinished(
        &self,
        gateway: &GatewayId,
        dead_before: Timestamp,
        error: &ErrorBody,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            let unfinished = deployments::unfinished(&mut *tx, gateway, dead_before).await?;
            for id in &unfinished {
                deployments::fail(&mut tx, id, error, now).await?;
            }
            tx.commit().await?;
            Ok(unfinished.len() as u64)
        })
        .await
    }

    async fn deployment(&self, id: &DeploymentId) -> Result<Deployment, StoreError> {
        self.with_limit(deployments::get(&self.read, id)).await
    }

    async fn deployments(&self, page: &Page) -> Result<Paged<Deployment>, StoreError> {
        self.with_limit(deployments::list(&self.read, page)).await
    }
}
