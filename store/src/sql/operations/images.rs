//! [`ImageStore`] in SQL: the transaction, the time limit and the announcement around the
//! statements of `sql/images.rs`.

use crate::{
    ImageStore, Outcome, StoreError,
    sql::{Sql, images},
};
use async_trait::async_trait;
use epsilon_api::function::ImageRef;
use jiff::Timestamp;

#[async_trait]
impl ImageStore for Sql {
    async fn record_unneeded_images(
        &self,
        images: &[ImageRef],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            images::note(&mut tx, images, now).await?;
            Ok(tx.commit().await?)
        })
        .await
    }

    async fn claim_unneeded_images(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<ImageRef>, StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            let images = images::take(&mut tx, before, limit).await?;
            tx.commit().await?;
            Ok(images)
        })
        .await
    }

    async fn record_removals(
        &self,
        images: &[(ImageRef, Outcome)],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            images::taken(&mut tx, images, now).await?;
            Ok(tx.commit().await?)
        })
        .await
    }
}
