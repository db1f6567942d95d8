//! Images that no version needs, and their removal. The trait and its types;
//! `sql/operations/images.rs` implements it.

use crate::StoreError;
use async_trait::async_trait;
use epsilon_api::function::ImageRef;
use jiff::Timestamp;
use std::fmt;

/// Result of the removal of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Removed everywhere.
    Gone,
    /// Still in use; nothing was removed.
    InUse,
    /// May be removed in one place and exist in another.
    Unknown,
}

/// Images that no version needs, and their removal. As [`Store`](crate::Store) says, each method is
/// one transaction.
#[async_trait]
pub trait ImageStore: Send + Sync + fmt::Debug {
    /// Records images that were made without becoming a version, as unneeded. Images of a version
    /// are not recorded.
    async fn record_unneeded_images(
        &self,
        images: &[ImageRef],
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Takes at most `limit` images that no version has needed since `before`, to be removed
    /// everywhere. Until [`ImageStore::record_removals`] reports the outcome, a deployment that
    /// uses one of them is refused.
    async fn claim_unneeded_images(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<ImageRef>, StoreError>;

    /// Records the outcome of the removal of images that were taken. Those that were not removed
    /// can be taken again, as if they were unneeded since now.
    async fn record_removals(
        &self,
        images: &[(ImageRef, Outcome)],
        now: Timestamp,
    ) -> Result<(), StoreError>;
}
