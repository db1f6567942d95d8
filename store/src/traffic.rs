//! Splits of a function's calls among its versions. The trait and its types;
//! `sql/operations/traffic.rs` implements it.

use crate::StoreError;
use async_trait::async_trait;
use epsilon_api::{
    function::Version,
    ids::{FunctionName, VersionNumber},
    traffic::slots::InvalidShares,
    traffic::{AbortRule, Aborted, Share, Split, Sticky},
};
use jiff::Timestamp;
use std::fmt;

/// A requested split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitRequest {
    /// The shares.
    pub shares: Vec<Share>,
    /// The version that gets all calls after an abort; `None`: chosen by [`Self::stable_version`].
    pub stable: Option<VersionNumber>,
    /// What identifies a caller, so that it stays on its version.
    pub sticky: Option<Sticky>,
    /// When it is aborted.
    pub abort: AbortRule,
}

impl SplitRequest {
    /// The version that gets all calls after an abort: the named one, else that of the running
    /// split, else the oldest, because a newer one that fails has to go back to it, whatever its
    /// share.
    pub(crate) fn stable_version(
        &self,
        running: Option<VersionNumber>,
    ) -> Result<VersionNumber, InvalidShares> {
        let shares = InvalidShares::check(&self.shares)?;
        let is_in = |version| shares.iter().any(|share| share.version == version);
        if let Some(named) = self.stable {
            return if is_in(named) { Ok(named) } else { Err(InvalidShares::StableLeftOut(named)) };
        }
        if let Some(stable) = running.filter(|stable| is_in(*stable)) {
            return Ok(stable);
        }
        // Shares that make 100 are not empty.
        shares.iter().map(|share| share.version).min().ok_or(InvalidShares::Sum(0))
    }
}

/// A function's running split, or the last one if it was aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// The function.
    pub function: FunctionName,
    /// The active version.
    pub stable: VersionNumber,
    /// The terms.
    pub split: Split,
    /// Since when these shares apply. Identifies this split among those of the function.
    pub since: Timestamp,
    /// Why it was aborted.
    pub aborted: Option<Aborted>,
    /// The other versions; none for a split that has ended.
    pub candidates: Vec<Version>,
}

/// Splits of a function's calls among its versions. As [`Store`](crate::Store) says, each method is
/// one transaction.
#[async_trait]
pub trait TrafficStore: Send + Sync + fmt::Debug {
    /// Running splits, and aborted ones without a later change; by name.
    async fn traffic(&self) -> Result<Vec<Traffic>, StoreError>;

    /// Splits a function's calls. The stable version becomes the active one; returns the split,
    /// unless all calls go to that one version. Refused when the active version is not `seen` any
    /// more.
    async fn split(
        &self,
        name: &FunctionName,
        seen: VersionNumber,
        wanted: &SplitRequest,
        now: Timestamp,
    ) -> Result<(Version, Option<Traffic>), StoreError>;

    /// Ends a split: the given version serves all calls, else the only one beside the stable one.
    /// Refused when the active version is not `seen` any more.
    async fn promote(
        &self,
        name: &FunctionName,
        seen: VersionNumber,
        to: Option<VersionNumber>,
    ) -> Result<Version, StoreError>;

    /// Aborts exactly this split, because a version failed; the stable version serves all calls.
    /// Returns whether it was still running.
    async fn abort_split(
        &self,
        name: &FunctionName,
        since: Timestamp,
        why: &Aborted,
    ) -> Result<bool, StoreError>;
}
