//! [`KeyStore`] in SQL: the transaction, the time limit and the announcement around the statements
//! of `sql/keys.rs`.

use crate::{
    Key, KeyStore, OwnedKey, Page, Paged, StoreError,
    sql::{Sql, keys},
};
use async_trait::async_trait;
use epsilon_api::ids::GatewayId;
use jiff::Timestamp;

#[async_trait]
impl KeyStore for Sql {
    async fn replace_key(
        &self,
        gateway: &GatewayId,
        key: &Key,
        silent_before: Timestamp,
    ) -> Result<bool, StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            let is_new = keys::replace(&mut tx, gateway, key, silent_before).await?;
            tx.commit().await?;
            Ok(is_new)
        })
        .await
    }

    async fn adopt_key(
        &self,
        gateway: &GatewayId,
        key: &Key,
        silent_before: Timestamp,
    ) -> Result<bool, StoreError> {
        self.with_limit(keys::adopt(&self.write, gateway, key, silent_before)).await
    }

    async fn key(&self, id: &str) -> Result<Option<Key>, StoreError> {
        self.with_limit(keys::get(&self.read, id)).await
    }

    async fn keys(&self, page: &Page) -> Result<Paged<OwnedKey>, StoreError> {
        self.with_limit(keys::list(&self.read, page)).await
    }

    async fn remove_key(
        &self,
        id: &str,
        silent_before: Option<Timestamp>,
    ) -> Result<OwnedKey, StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            let removed = keys::remove(&mut tx, id, silent_before).await?;
            tx.commit().await?;
            Ok(removed)
        })
        .await
    }
}
