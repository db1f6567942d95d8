//! The trait that every back end implements, and its types. No SQL here. Time is passed in: the
//! store has no clock.

use crate::StoreError;
use async_trait::async_trait;
use epsilon_api::{
    admin::DeploymentState,
    build::Built,
    error::ErrorBody,
    fleet::Join,
    function::{ImageRef, Version},
    ids::{DeploymentId, FunctionName, GatewayId, ProjectName, VersionId, VersionNumber, VmId},
    traffic::{AbortRule, Aborted, Share, Split, Sticky, slots::InvalidShares},
};
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use std::{fmt, time::Duration};

/// A stored deployment: one push of a project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Its id.
    pub id: DeploymentId,
    /// The project, once the build has reported its name.
    pub project: Option<ProjectName>,
    /// Current state.
    pub state: DeploymentState,
    /// When it was received.
    pub created_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it failed.
    pub error: Option<ErrorBody>,
    /// Origin, for people; none when it was sent to the control API.
    pub source: Option<String>,
    /// Its functions, changed or not; empty unless it is done.
    pub functions: Vec<Deployed>,
}

/// A webhook delivery of a push, and the deployment that it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The project of the webhook.
    pub project: ProjectName,
    /// GitHub's id of the delivery.
    pub id: String,
    /// SHA-256 of its payload, in hexadecimal.
    pub digest: String,
    /// The deployment that it starts.
    pub deployment: DeploymentId,
    /// Origin of the deployment, for people.
    pub source: String,
    /// When it was received.
    pub seen_at: Timestamp,
}

/// One function in a deployment's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployed {
    /// Its name.
    pub name: FunctionName,
    /// The version that serves.
    pub version: VersionNumber,
    /// Whether the deployment made that version.
    pub changed: bool,
}

/// What activation will do to one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// A new version that does not serve yet, or the active one when nothing changed.
    pub version: Version,
    /// Whether it is new.
    pub changed: bool,
}

/// A version that serves or has served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredVersion {
    /// The version.
    pub version: Version,
    /// Whether it serves now.
    pub active: bool,
}

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

/// A requested page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The `next` of the previous page; `None` for the first.
    pub cursor: Option<String>,
    /// Maximum number of items.
    pub limit: u32,
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paged<T> {
    /// The items.
    pub items: Vec<T>,
    /// Cursor of the next page, if there is one.
    pub next: Option<String>,
}

impl Page {
    /// Rows to query: one more than requested shows whether there is a next page.
    pub(crate) fn limit_plus_one(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// The cursor of a list that is ordered by a number.
    pub(crate) fn number_cursor(&self, first: i64) -> Result<i64, StoreError> {
        match &self.cursor {
            Some(text) => text.parse().map_err(|_| StoreError::BadCursor(text.clone())),
            None => Ok(first),
        }
    }

    /// Drops the extra row; the cursor is the key of the last row that stays.
    pub(crate) fn cut<T>(&self, mut rows: Vec<T>, key: impl Fn(&T) -> String) -> Paged<T> {
        let more = rows.len() > self.limit as usize;
        rows.truncate(self.limit as usize);
        let next = rows.last().filter(|_| more).map(key);
        Paged { items: rows, next }
    }
}

impl<T> Paged<T> {
    /// The same page with each item converted.
    pub fn map<U>(self, turn: impl FnMut(T) -> U) -> Paged<U> {
        Paged { items: self.items.into_iter().map(turn).collect(), next: self.next }
    }

    pub(crate) fn try_map<U>(
        self,
        turn: impl FnMut(T) -> Result<U, StoreError>,
    ) -> Result<Paged<U>, StoreError> {
        let items = self.items.into_iter().map(turn).collect::<Result<_, _>>()?;
        Ok(Paged { items, next: self.next })
    }
}

/// What a key authorizes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyRole {
    /// Use of the control API.
    Admin,
    /// Joining the fleet as a VM.
    Fleet,
    /// Joining the fleet as a builder.
    Builder,
    /// Requests of this member of the fleet.
    Member(VmId),
}

/// A key without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The part of the key that identifies it; not secret.
    pub id: String,
    /// What it authorizes.
    pub role: KeyRole,
    /// SHA-256 of the secret, in hexadecimal.
    pub hash: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A key of a gateway, and whether that gateway is still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedKey {
    /// The key.
    pub key: Key,
    /// The gateway that has it in its file; none in rows of the first release.
    pub owner: Option<GatewayId>,
    /// Time of that gateway's last heartbeat; none when it is not known any more.
    pub owner_seen_at: Option<Timestamp>,
}

impl OwnedKey {
    /// When its owner was seen last: the last heartbeat, or else the key's creation.
    pub fn last_seen_at(&self) -> Timestamp {
        self.owner_seen_at.unwrap_or(self.key.created_at)
    }
}

/// A VM or a builder that joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it reported of itself.
    pub join: Join,
    /// When it joined last.
    pub joined_at: Timestamp,
    /// Time of its last heartbeat.
    pub seen_at: Timestamp,
}

/// A gateway of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its id.
    pub id: GatewayId,
    /// Public key that verifies its tokens: 64 hexadecimal digits.
    pub public_key: String,
    /// Where members reach its control listener.
    pub control_url: String,
    /// Time of its last heartbeat.
    pub seen_at: Timestamp,
}

/// Kinds of changes that listeners are notified of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// The versions that serve.
    Routes,
    /// Members or gateways of the fleet. Heartbeats alone are not announced.
    Members,
    /// The VMs that drain.
    Draining,
    /// Changes may have been missed: read everything again.
    Resync,
}

/// Durable state. Each method is one atomic transaction, and `Ok` means that it is durable. A
/// future dropped before `Ok` leaves the state before or after it.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Records that a deployment was received and which gateway runs it. Idempotent.
    async fn begin_deployment(
        &self,
        id: &DeploymentId,
        gateway: &GatewayId,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Records a delivery for the time `keep`, and its deployment. A delivery with the id or
    /// payload of a recorded one of the project starts nothing, unless the deployment of that one
    /// failed; then the earlier deployment is returned.
    async fn begin_delivery(
        &self,
        delivery: &Delivery,
        gateway: &GatewayId,
        keep: Duration,
    ) -> Result<Option<DeploymentId>, StoreError>;

    /// Allocates a version number for each function whose image or settings differ from its active
    /// version. Nothing serves yet. An allocated number is never reused, whatever happens to the
    /// deployment.
    async fn prepare(
        &self,
        id: &DeploymentId,
        built: &Built,
        now: Timestamp,
    ) -> Result<Vec<Prepared>, StoreError>;

    /// Activates every new version that was prepared, in one step. Unchanged functions keep the
    /// version that is active by then; the result names it.
    async fn activate(&self, id: &DeploymentId, now: Timestamp) -> Result<Deployment, StoreError>;

    /// Fails a deployment; deletes what was prepared.
    async fn fail_deployment(
        &self,
        id: &DeploymentId,
        error: &ErrorBody,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Fails the deployments that no gateway runs any more: those of the given gateway, which has
    /// just started, and those of gateways without a heartbeat since `dead_before`. So a gateway
    /// sends a heartbeat before it begins a deployment. Returns how many there were.
    async fn fail_unfinished(
        &self,
        gateway: &GatewayId,
        dead_before: Timestamp,
        error: &ErrorBody,
        now: Timestamp,
    ) -> Result<u64, StoreError>;

    /// One deployment.
    async fn deployment(&self, id: &DeploymentId) -> Result<Deployment, StoreError>;

    /// Deployments, newest first.
    async fn deployments(&self, page: &Page) -> Result<Paged<Deployment>, StoreError>;

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

    /// Whether several gateways may change it.
    fn is_shared(&self) -> bool;

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

    /// Records images that were made without becoming a version, as unneeded. Images of a version
    /// are not recorded.
    async fn record_unneeded_images(
        &self,
        images: &[ImageRef],
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Takes at most `limit` images that no version has needed since `before`, to be removed
    /// everywhere. Until [`Store::record_removals`] reports the outcome, a deployment that uses one
    /// of them is refused.
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

    /// Makes this the gateway's key of its role, in place of the one that it had before. Keys of
    /// other gateways stay valid: each gateway has its own, and every gateway accepts all of them.
    /// A key that several gateways have in their files belongs to the first of them until that one
    /// has been silent since `silent_before`. Returns whether the key was not known before.
    async fn replace_key(
        &self,
        gateway: &GatewayId,
        key: &Key,
        silent_before: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Assigns a key to this gateway if it has no owner, or one that has been silent since
    /// `silent_before`. Returns whether it did.
    async fn adopt_key(
        &self,
        gateway: &GatewayId,
        key: &Key,
        silent_before: Timestamp,
    ) -> Result<bool, StoreError>;

    /// The key with this id.
    async fn key(&self, id: &str) -> Result<Option<Key>, StoreError>;

    /// The keys of gateways, by id; none of members.
    async fn keys(&self, page: &Page) -> Result<Paged<OwnedKey>, StoreError>;

    /// Removes a gateway's key: no gateway accepts it any more. Refused when its gateway sent a
    /// heartbeat since `silent_before`, if that is given.
    async fn remove_key(
        &self,
        id: &str,
        silent_before: Option<Timestamp>,
    ) -> Result<OwnedKey, StoreError>;

    /// Records that a VM drains, or that it no longer does.
    async fn set_draining(&self, vm: &VmId, draining: bool) -> Result<(), StoreError>;

    /// The VMs that drain.
    async fn draining(&self) -> Result<Vec<VmId>, StoreError>;

    /// Registers a member, or registers it again: its earlier entry and key are replaced.
    async fn join(&self, member: &Member, key: &Key) -> Result<(), StoreError>;

    /// Records a member's heartbeat.
    async fn member_heartbeat(&self, id: &VmId, now: Timestamp) -> Result<(), StoreError>;

    /// Removes a member and its key. Whether it drains stays recorded: it may come back.
    /// Idempotent.
    async fn leave(&self, id: &VmId) -> Result<(), StoreError>;

    /// The members by id, silent ones included.
    async fn members(&self) -> Result<Vec<Member>, StoreError>;

    /// Records a gateway's heartbeat, public key and address.
    async fn gateway_heartbeat(&self, gateway: &Gateway) -> Result<(), StoreError>;

    /// The gateways by id. One that has been silent for a month is removed when a new one sends its
    /// first heartbeat.
    async fn gateways(&self) -> Result<Vec<Gateway>, StoreError>;

    /// Removes a gateway that has been silent since `silent_before`: members no longer accept its
    /// tokens. Returns whether it did.
    async fn forget_gateway(
        &self,
        id: &GatewayId,
        silent_before: Timestamp,
    ) -> Result<bool, StoreError>;

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

    /// Changes from now on, by any gateway. A hint to read again, sent once the change is readable;
    /// several changes may be merged. Never ends while the store exists.
    fn changes(&self) -> BoxStream<'static, Change>;
}
