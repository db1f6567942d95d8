//! Functions and their versions: which one serves, which ones served before. The trait and its
//! types; `sql/operations/functions.rs` implements it.

use crate::{Page, Paged, StoreError};
use async_trait::async_trait;
use epsilon_api::{
    function::Version,
    ids::{FunctionName, VersionId, VersionNumber},
};
use jiff::Timestamp;
use std::fmt;

/// A version that serves or has served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredVersion {
    /// The version.
    pub version: Version,
    /// Whether it serves now.
    pub active: bool,
}

/// Functions and their versions: which one serves, which ones served before. As
/// [`Store`](crate::Store) says, each method is one transaction.
#[async_trait]
pub trait FunctionStore: Send + Sync + fmt::Debug {
    /// All active versions: the source of the routing table.
    async fn snapshot(&self) -> Result<Vec<Version>, StoreError>;

    /// Active versions by name.
    async fn functions(&self, page: &Page) -> Result<Paged<Version>, StoreError>;

    /// Versions of one function that serve or have served, newest first.
    async fn versions(
        &self,
        name: &FunctionName,
        page: &Page,
    ) -> Result<Paged<StoredVersion>, StoreError>;

    /// Whether a version of any of these functions serves.
    async fn is_any_active(&self, names: &[FunctionName]) -> Result<bool, StoreError>;

    /// One version that serves or has served.
    async fn version(
        &self,
        name: &FunctionName,
        number: VersionNumber,
    ) -> Result<Version, StoreError>;

    /// The version that serves; in a split, the stable one.
    async fn active(&self, name: &FunctionName) -> Result<Version, StoreError>;

    /// Makes another version serve all calls: the given one, else the stable one of a running
    /// split, else the newest that is older than the active one.
    async fn rollback(
        &self,
        name: &FunctionName,
        to: Option<VersionNumber>,
    ) -> Result<Version, StoreError>;

    /// Removes a function with its versions and frees its name for any project. Returns the version
    /// that served.
    async fn delete_function(
        &self,
        name: &FunctionName,
        now: Timestamp,
    ) -> Result<Version, StoreError>;

    /// Removes the versions that are not among the newest `keep` of their function. A version that
    /// serves, or that a running deployment needs, stays. Returns the removed ones.
    async fn prune(&self, keep: u32, now: Timestamp) -> Result<Vec<VersionId>, StoreError>;

    /// Removes one version, so that it cannot be called or rolled back to. Its image is treated
    /// like those of other removed versions. Refused for one that serves, has a share of the calls,
    /// or that a running deployment needs.
    async fn remove_version(
        &self,
        name: &FunctionName,
        number: VersionNumber,
        now: Timestamp,
    ) -> Result<Version, StoreError>;
}
