//! [`FunctionStore`] in SQL: the transaction, the time limit and the announcement around the
//! statements of `sql/functions.rs`, `sql/retention.rs`, `sql/serving.rs`.

use crate::{
    Change, FunctionStore, Page, Paged, StoreError, StoredVersion,
    sql::{Sql, functions, retention, serving},
};
use async_trait::async_trait;
use epsilon_api::{
    function::Version,
    ids::{FunctionName, VersionId, VersionNumber},
};
use jiff::Timestamp;

#[async_trait]
impl FunctionStore for Sql {
    async fn snapshot(&self) -> Result<Vec<Version>, StoreError> {
        self.with_limit(functions::snapshot(&self.read)).await
    }

    async fn functions(&self, page: &Page) -> Result<Paged<Version>, StoreError> {
        self.with_limit(functions::list(&self.read, page)).await
    }

    async fn versions(
        &self,
        name: &FunctionName,
        page: &Page,
    ) -> Result<Paged<StoredVersion>, StoreError> {
        self.with_limit(async {
            functions::versions(&mut self.begin_snapshot().await?, name, page).await
        })
        .await
    }

    async fn is_any_active(&self, names: &[FunctionName]) -> Result<bool, StoreError> {
        self.with_limit(functions::is_any_active(&self.read, names)).await
    }

    async fn version(
        &self,
        name: &FunctionName,
        number: VersionNumber,
    ) -> Result<Version, StoreError> {
        self.with_limit(async {
            functions::version(&mut self.begin_snapshot().await?, name, number).await
        })
        .await
    }

    async fn active(&self, name: &FunctionName) -> Result<Version, StoreError> {
        self.with_limit(async {
            functions::require_active(&mut self.begin_snapshot().await?, name).await
        })
        .await
    }

    async fn rollback(
        &self,
        name: &FunctionName,
        to: Option<VersionNumber>,
    ) -> Result<Version, StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            let version = serving::rollback(&mut tx, name, to).await?;
            self.commit(tx, Change::Routes).await?;
            Ok(version)
        })
        .await
    }

    async fn delete_function(
        &self,
        name: &FunctionName,
        now: Timestamp,
    ) -> Result<Version, StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            let version = serving::delete(&mut tx, name, now).await?;
            self.commit(tx, Change::Routes).await?;
            Ok(version)
        })
        .await
    }

    async fn prune(&self, keep: u32, now: Timestamp) -> Result<Vec<VersionId>, StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            let removed = retention::prune(&mut tx, keep, now).await?;
            tx.commit().await?;
            Ok(removed)
        })
        .await
    }

    async fn remove_version(
        &self,
        name: &FunctionName,
        number: VersionNumber,
        now: Timestamp,
    ) -> Result<Version, StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            let is_active = functions::require_active(&mut tx, name).await?.number == number;
            let version = functions::version(&mut tx, name, number).await?;
            if is_active || !retention::remove_one(&mut tx, &version.id(), now).await? {
                return Err(StoreError::VersionServes { function: name.clone(), number });
            }
            self.commit(tx, Change::Routes).await?;
            Ok(version)
        })
        .await
    }
}
