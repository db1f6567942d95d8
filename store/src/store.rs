//! The trait that every back end implements, and the words of its questions and answers. No SQL here.
//! Time is passed in: the store has no clock.

use crate::StoreError;
use async_trait::async_trait;
use epsilon_api::{
    admin::DeploymentState,
    build::Built,
    error::ErrorBody,
    fleet::Join,
    function::{ImageRef, Version},
    ids::{DeploymentId, FunctionName, GatewayId, ProjectName, VersionId, VersionNumber, VmId},
    traffic::{AbortRule, Aborted, Share, Split, Sticky, slots::BadShares},
};
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use std::{fmt, time::Duration};

/// One push of a project, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Its id.
    pub id: DeploymentId,
    /// The project, once the build told its name.
    pub project: Option<ProjectName>,
    /// How it stands.
    pub state: DeploymentState,
    /// When it came in.
    pub created_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it failed.
    pub error: Option<ErrorBody>,
    /// Where it came from, for people; none when it was sent to the control API.
    pub source: Option<String>,
    /// What it made or left as it was; empty unless it is done.
    pub functions: Vec<Deployed>,
}

/// A push that a hub told of, and the deployment that it is to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Whose webhook it came by.
    pub project: ProjectName,
    /// The hub's id of it.
    pub id: String,
    /// SHA-256 of its payload, in hexadecimal.
    pub digest: String,
    /// The deployment.
    pub deployment: DeploymentId,
    /// What the deployment says of where it came from.
    pub source: String,
    /// When it came.
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

/// A version that serves or served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredVersion {
    /// The version.
    pub version: Version,
    /// Whether it serves now.
    pub active: bool,
}

/// A split that somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedSplit {
    /// The shares.
    pub shares: Vec<Share>,
    /// The version that all calls go back to, if the choice is not left to the store.
    pub stable: Option<VersionNumber>,
    /// Whether a caller stays on its version.
    pub sticky: Option<Sticky>,
    /// When it ends by itself.
    pub abort: AbortRule,
}

impl WantedSplit {
    /// The version that all calls go back to: the one that is named, else the one of the split that runs, else the
    /// oldest: a newer one that fails goes back to it, whatever its share.
    pub(crate) fn stable_version(
        &self,
        running: Option<VersionNumber>,
    ) -> Result<VersionNumber, BadShares> {
        let shares = BadShares::check(&self.shares)?;
        let is_in = |version| shares.iter().any(|share| share.version == version);
        if let Some(named) = self.stable {
            return if is_in(named) { Ok(named) } else { Err(BadShares::StableLeftOut(named)) };
        }
        if let Some(stable) = running.filter(|stable| is_in(*stable)) {
            return Ok(stable);
        }
        // Shares that make 100 are not empty.
        shares.iter().map(|share| share.version).min().ok_or(BadShares::Sum(0))
    }
}

/// A function's split as it holds, or as it ended when it did so by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// The function.
    pub function: FunctionName,
    /// The active version.
    pub stable: VersionNumber,
    /// The terms.
    pub split: Split,
    /// Since when these shares hold. Tells this split from every other one of the function.
    pub since: Timestamp,
    /// Why it is over.
    pub aborted: Option<Aborted>,
    /// The other versions; none of a split that is over.
    pub candidates: Vec<Version>,
}

/// What came of the removal of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is nowhere any more.
    Gone,
    /// Something still uses it; nothing was touched.
    InUse,
    /// It may be gone in one place and lie in another.
    Unknown,
}

/// Which part of a list is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The `next` of the part before; `None` for the first.
    pub cursor: Option<String>,
    /// At most so many items.
    pub limit: u32,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paged<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the list goes on, if it does.
    pub next: Option<String>,
}

impl Page {
    /// How many rows to ask for: one more than wanted tells whether the list goes on.
    pub(crate) fn one_more(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// The cursor of a list that is ordered by a number.
    pub(crate) fn number_or(&self, first: i64) -> Result<i64, StoreError> {
        match &self.cursor {
            Some(text) => text.parse().map_err(|_| StoreError::BadCursor(text.clone())),
            None => Ok(first),
        }
    }

    /// Drops the row too many; the cursor is the key of the last row that stays.
    pub(crate) fn cut<T>(&self, mut rows: Vec<T>, key: impl Fn(&T) -> String) -> Paged<T> {
        let more = rows.len() > self.limit as usize;
        rows.truncate(self.limit as usize);
        let next = rows.last().filter(|_| more).map(key);
        Paged { items: rows, next }
    }
}

impl<T> Paged<T> {
    /// The same part with each item turned into another.
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

/// What a key opens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyRole {
    /// The control API.
    Admin,
    /// Joining the fleet as a VM.
    Fleet,
    /// Joining it as a builder.
    Builder,
    /// What this member of the fleet may do.
    Member(VmId),
}

/// A key without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The part of the key that finds it; not secret.
    pub id: String,
    /// What it opens.
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
    /// When that gateway was heard last; none when it is not known any more.
    pub owner_seen_at: Option<Timestamp>,
}

impl OwnedKey {
    /// When anything was heard last of somebody who has it.
    pub fn heard_at(&self) -> Timestamp {
        self.owner_seen_at.unwrap_or(self.key.created_at)
    }
}

/// A VM or a builder that joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it said of itself.
    pub join: Join,
    /// When it joined, the last time that it did.
    pub joined_at: Timestamp,
    /// When it was heard last.
    pub seen_at: Timestamp,
}

/// A gateway of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its id.
    pub id: GatewayId,
    /// What its passes are checked with: 64 hexadecimal digits.
    pub public_key: String,
    /// Where members reach its control listener.
    pub control_url: String,
    /// When it was heard last.
    pub seen_at: Timestamp,
}

/// What is no longer as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// Which versions serve.
    Routes,
    /// Who is in the fleet: members or gateways. Beats alone are not told.
    Members,
    /// Which VMs drain.
    Draining,
    /// Changes may have been missed: read everything again.
    Resync,
}

/// Durable state. Each method is one transaction: it happens as a whole or not at all, and `Ok` means
/// that it is on disk. Dropping a future before `Ok` leaves the one or the other.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Notes that a deployment came in and which gateway works on it. Nothing happens when that is noted already.
    async fn begin_deployment(
        &self,
        id: &DeploymentId,
        gateway: &GatewayId,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Notes a delivery for the length of `keep`, and that its deployment came in. A project's delivery that has its id
    /// or its payload in common with one that is known begins nothing, unless the deployment of that one failed: then
    /// the earlier deployment is the answer.
    async fn begin_delivery(
        &self,
        delivery: &Delivery,
        gateway: &GatewayId,
        keep: Duration,
    ) -> Result<Option<DeploymentId>, StoreError>;

    /// Takes a number for each function whose image or settings differ from its active version. Nothing
    /// serves yet. A number that was taken is never used again, whatever becomes of the deployment.
    async fn prepare(
        &self,
        id: &DeploymentId,
        built: &Built,
        now: Timestamp,
    ) -> Result<Vec<Prepared>, StoreError>;

    /// Makes every new version that was prepared serve, in one step. What has none serves on as it does by then; the
    /// answer says which version that is.
    async fn activate(&self, id: &DeploymentId, now: Timestamp) -> Result<Deployment, StoreError>;

    /// Ends a deployment without effect; forgets what was prepared.
    async fn fail_deployment(
        &self,
        id: &DeploymentId,
        error: &ErrorBody,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Fails the deployments that nobody works on any more: those of the given gateway, which has just
    /// started, and those of gateways that have not beaten since `dead_before`. So a gateway beats before it
    /// begins a deployment. Answers how many there were.
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

    /// All active versions: what the routing table is made of.
    async fn snapshot(&self) -> Result<Vec<Version>, StoreError>;

    /// Active versions by name.
    async fn functions(&self, page: &Page) -> Result<Paged<Version>, StoreError>;

    /// Versions of one function that serve or served, newest first.
    async fn versions(
        &self,
        name: &FunctionName,
        page: &Page,
    ) -> Result<Paged<StoredVersion>, StoreError>;

    /// Whether several gateways may change it.
    fn is_shared(&self) -> bool;

    /// Whether a version of any of these functions serves.
    async fn any_serves(&self, names: &[FunctionName]) -> Result<bool, StoreError>;

    /// One version that serves or served.
    async fn version(
        &self,
        name: &FunctionName,
        number: VersionNumber,
    ) -> Result<Version, StoreError>;

    /// The version that serves: of a split, the stable one.
    async fn active(&self, name: &FunctionName) -> Result<Version, StoreError>;

    /// The splits that hold, and those that ended by themselves when nothing was changed since; by name.
    async fn traffic(&self) -> Result<Vec<Traffic>, StoreError>;

    /// Splits a function's calls, from now on in this way. The stable version becomes the active one; answered with the
    /// split, unless all calls are to go to that one version. Refused when another version than `seen` is active by now.
    async fn split(
        &self,
        name: &FunctionName,
        seen: VersionNumber,
        wanted: &WantedSplit,
        now: Timestamp,
    ) -> Result<(Version, Option<Traffic>), StoreError>;

    /// Ends a split: the given version serves all calls, else the only one beside the stable one. Refused when another
    /// version than `seen` is active by now.
    async fn promote(
        &self,
        name: &FunctionName,
        seen: VersionNumber,
        to: Option<VersionNumber>,
    ) -> Result<Version, StoreError>;

    /// Ends the split of this time, and no other one, because a version failed; the stable version serves all calls.
    /// Whether it was this that ended it.
    async fn abort_split(
        &self,
        name: &FunctionName,
        since: Timestamp,
        why: &Aborted,
    ) -> Result<bool, StoreError>;

    /// Makes another version serve all calls: the given one, else the stable one of a split that holds, else the newest
    /// that is older than the active one.
    async fn rollback(
        &self,
        name: &FunctionName,
        to: Option<VersionNumber>,
    ) -> Result<Version, StoreError>;

    /// Removes a function with its versions and frees its name for any project. Answers what served.
    async fn delete_function(
        &self,
        name: &FunctionName,
        now: Timestamp,
    ) -> Result<Version, StoreError>;

    /// Removes the versions that are not among the newest `keep` of their function. One that serves, or that a
    /// deployment at work counts on, stays. Answers which are gone.
    async fn prune(&self, keep: u32, now: Timestamp) -> Result<Vec<VersionId>, StoreError>;

    /// Removes one version, so that nobody calls it or rolls back to it any more. Its image goes like those of other removed
    /// versions. Refused for one that serves, has a share of the calls, or that a deployment at work counts on.
    async fn remove_version(
        &self,
        name: &FunctionName,
        number: VersionNumber,
        now: Timestamp,
    ) -> Result<Version, StoreError>;

    /// Notes images that were made and that no version came of, like those that removed versions leave behind. What a
    /// version has is not noted.
    async fn note_unneeded(&self, images: &[ImageRef], now: Timestamp) -> Result<(), StoreError>;

    /// Takes at most `limit` images that no version has needed since `before`, to be removed wherever they lie. Until
    /// [`Store::taken`] tells what came of it, a deployment that brings one of them is refused.
    async fn take_unneeded(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<ImageRef>, StoreError>;

    /// What came of the removal of images that were taken. Those that are not gone can be taken again, as if they were
    /// unneeded since now.
    async fn taken(&self, images: &[(ImageRef, Outcome)], now: Timestamp)
    -> Result<(), StoreError>;

    /// Makes this the gateway's key of its role, in place of the one that it had before. Keys of other gateways stay valid:
    /// each gateway has its own, and all open every gateway's doors. A key that several gateways have in their files belongs
    /// to the first of them until that one has been silent since `silent_before`. Answers whether it was not known before.
    async fn replace_key(
        &self,
        gateway: &GatewayId,
        key: &Key,
        silent_before: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Makes a key this gateway's that belongs to none, or to one that has been silent since `silent_before`. Answers whether
    /// it was such a one.
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

    /// Removes a gateway's key: it opens nothing any more. Refused when something was heard of its gateway since
    /// `silent_before`, if that is given.
    async fn remove_key(
        &self,
        id: &str,
        silent_before: Option<Timestamp>,
    ) -> Result<OwnedKey, StoreError>;

    /// Notes that a VM drains, or that it does no more.
    async fn set_draining(&self, vm: &VmId, draining: bool) -> Result<(), StoreError>;

    /// The VMs that drain.
    async fn draining(&self) -> Result<Vec<VmId>, StoreError>;

    /// Takes a member in, or takes it in again: what it said before is replaced, and so is its key.
    async fn join(&self, member: &Member, key: &Key) -> Result<(), StoreError>;

    /// Notes that a member is still there.
    async fn beat(&self, id: &VmId, now: Timestamp) -> Result<(), StoreError>;

    /// Forgets a member and its key. Whether it drains is remembered: it may come back. Idempotent.
    async fn leave(&self, id: &VmId) -> Result<(), StoreError>;

    /// The members by id, also those that have been silent for long.
    async fn members(&self) -> Result<Vec<Member>, StoreError>;

    /// Notes that a gateway is there, and how to recognise and reach it.
    async fn gateway_beat(&self, gateway: &Gateway) -> Result<(), StoreError>;

    /// The gateways by id. One that has been silent for a month is forgotten when a new one beats.
    async fn gateways(&self) -> Result<Vec<Gateway>, StoreError>;

    /// Forgets a gateway that has been silent since `silent_before`: members trust its passes no more. Answers whether it was
    /// such a one.
    async fn forget_gateway(
        &self,
        id: &GatewayId,
        silent_before: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Whether this gateway is the one that does `role` from `now` for the length of `lease`. It stays so as
    /// long as it asks again before that; when it does not, the next one that asks takes over.
    ///
    /// Clocks of gateways may differ by as much as `lease`. A lease that ends later than that allows was
    /// given by a clock that had jumped, and counts as over: nobody waits for the jump's length.
    async fn lead(
        &self,
        gateway: &GatewayId,
        role: &str,
        lease: Duration,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// What changes from now on, by whichever gateway. A hint to read again, told after the change can be
    /// read; several changes may be told as one. Never ends while the store lives.
    fn changes(&self) -> BoxStream<'static, Change>;
}
