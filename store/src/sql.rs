//! The store in SQL, once for both back ends: every statement runs unchanged on SQLite and on
//! PostgreSQL. Differences are here (serializing writers, announcing changes) and in `sqlite` and
//! `postgres` (connections, schema).
//!
//! A transaction that changes functions or deployments takes the write lock first: SQLite has one
//! writer anyway, and on PostgreSQL the writers of all gateways queue for one advisory lock. So a
//! transaction sees all that was committed before and nothing unfinished, on both alike. Heartbeats
//! and leases are single statements and take no lock.

pub(crate) mod backup;
mod deployments;
mod functions;
mod gateways;
mod hooks;
mod keys;
mod members;
mod retention;
mod rows;
mod traffic;

use crate::{
    Change, Delivery, Deployment, Gateway, Key, Member, Outcome, OwnedKey, Page, Paged, Prepared,
    SplitRequest, Store, StoreError, StoredVersion, Traffic, changes::Changes,
};
use async_trait::async_trait;
use epsilon_api::{
    build::Built,
    error::ErrorBody,
    function::{ImageRef, Version},
    ids::{DeploymentId, FunctionName, GatewayId, VersionId, VersionNumber, VmId},
    traffic::Aborted,
};
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use sqlx::{Any, AnyPool, Connection, Transaction, any::AnyPoolOptions};
use std::{io, time::Duration};
use tokio_util::task::AbortOnDropHandle;

/// How long a returned connection may take to prove that it is usable.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long preparing or activating a deployment may take: a few rows for each of its functions, at
/// a server that may be milliseconds away. Only the deployment waits for it.
const DEPLOYMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// PostgreSQL's notification channel for changes.
pub(crate) const CHANNEL: &str = "epsilon";
/// PostgreSQL's advisory lock of the writers: "epsilon" in ASCII.
const WRITE_LOCK: i64 = 0x65_70_73_69_6c_6f_6e;

pub(crate) type Tx = Transaction<'static, Any>;

/// The kind of database that the pools connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Sqlite,
    Postgres,
}

/// The store. Both pools may be the same one.
#[derive(Debug)]
pub(crate) struct Sql {
    pub(crate) engine: Engine,
    pub(crate) write: AnyPool,
    pub(crate) read: AnyPool,
    pub(crate) changes: Changes,
    /// The newest migration that this release knows.
    pub(crate) known: i64,
    /// Time limit of any other operation; after it, the operation fails as if the database were
    /// unavailable.
    pub(crate) limit: Duration,
    /// Receives changes of other gateways; ends with the store.
    pub(crate) _listener: Option<AbortOnDropHandle<()>>,
}

/// Pools of both back ends. A connection that is returned within a transaction (its COMMIT or
/// ROLLBACK failed), or that does not answer, is closed: the next operation would fail on it.
pub(crate) fn pool(session: &'static str) -> AnyPoolOptions {
    AnyPoolOptions::new()
        .after_connect(move |connection, _| {
            Box::pin(async move { sqlx::raw_sql(session).execute(connection).await.map(drop) })
        })
        .after_release(|connection, _| {
            Box::pin(async move {
                // Also waits for a rollback that was started by dropping a transaction.
                let answers = tokio::time::timeout(CHECK_TIMEOUT, connection.ping()).await;
                Ok(matches!(answers, Ok(Ok(()))) && !connection.is_in_transaction())
            })
        })
}

impl Sql {
    /// A transaction that will write, holding the write lock.
    pub(crate) async fn begin(&self) -> Result<Tx, StoreError> {
        match self.engine {
            // The write lock at once, so that the transaction never fails half-way for it.
            Engine::Sqlite => Ok(self.write.begin_with("BEGIN IMMEDIATE").await?),
            Engine::Postgres => {
                let begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
                let mut tx = self.write.begin_with(begin).await?;
                sqlx::query("SELECT pg_advisory_xact_lock($1)")
                    .bind(WRITE_LOCK)
                    .execute(&mut *tx)
                    .await?;
                Ok(tx)
            }
        }
    }

    /// A read-only transaction whose statements all read the same snapshot.
    pub(crate) async fn begin_snapshot(&self) -> Result<Tx, StoreError> {
        let begin = match self.engine {
            Engine::Sqlite => "BEGIN",
            Engine::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        Ok(self.read.begin_with(begin).await?)
    }

    /// Commits; listeners are notified once the change is readable, and not if this fails.
    pub(crate) async fn commit(&self, mut tx: Tx, change: Change) -> Result<(), StoreError> {
        match self.engine {
            Engine::Sqlite => {
                tx.commit().await?;
                self.changes.announce(change);
            }
            Engine::Postgres => {
                sqlx::query("SELECT pg_notify($1, $2)")
                    .bind(CHANNEL)
                    .bind(change.text())
                    .execute(&mut *tx)
                    .await?;
                tx.commit().await?;
            }
        }
        Ok(())
    }

    /// Applies the time limit: an operation ends whatever the database or the network does.
    async fn with_limit<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        with_timeout(self.limit, work).await
    }
}

async fn with_timeout<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        let message = format!("no answer within {limit:?}");
        Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, message)).into())
    })
}

#[async_trait]
impl Store for Sql {
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

    fn is_shared(&self) -> bool {
        self.engine == Engine::Postgres
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

    async fn traffic(&self) -> Result<Vec<Traffic>, StoreError> {
        self.with_limit(async {
            // Most stores have none, and gateways ask often.
            if traffic::count(&self.read).await? == 0 {
                return Ok(Vec::new());
            }
            traffic::list(&mut self.begin_snapshot().await?).await
        })
        .await
    }

    async fn split(
        &self,
        name: &FunctionName,
        seen: VersionNumber,
        wanted: &SplitRequest,
        now: Timestamp,
    ) -> Result<(Version, Option<Traffic>), StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            let split = traffic::split(&mut tx, name, seen, wanted, now).await?;
            self.commit(tx, Change::Routes).await?;
            Ok(split)
        })
        .await
    }

    async fn promote(
        &self,
        name: &FunctionName,
        seen: VersionNumber,
        to: Option<VersionNumber>,
    ) -> Result<Version, StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            let version = traffic::promote(&mut tx, name, seen, to).await?;
            self.commit(tx, Change::Routes).await?;
            Ok(version)
        })
        .await
    }

    async fn abort_split(
        &self,
        name: &FunctionName,
        since: Timestamp,
        why: &Aborted,
    ) -> Result<bool, StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            let done = traffic::abort(&mut tx, name, since, why).await?;
            self.commit(tx, Change::Routes).await?;
            Ok(done)
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
            let version = functions::rollback(&mut tx, name, to).await?;
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
            let version = functions::delete(&mut tx, name, now).await?;
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

    async fn record_unneeded_images(
        &self,
        images: &[ImageRef],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            retention::note(&mut tx, images, now).await?;
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
            let images = retention::take(&mut tx, before, limit).await?;
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
            retention::taken(&mut tx, images, now).await?;
            Ok(tx.commit().await?)
        })
        .await
    }

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

    async fn lead(
        &self,
        gateway: &GatewayId,
        role: &str,
        lease: Duration,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.with_limit(gateways::lead(&self.write, gateway, role, lease, now)).await
    }

    fn changes(&self) -> BoxStream<'static, Change> {
        self.changes.listen()
    }
}
