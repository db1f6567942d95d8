//! The store in one SQLite file, for one gateway.
//!
//! One connection writes (SQLite has one writer anyway; queueing here is fairer than its busy loop),
//! a few read. WAL with `synchronous = FULL`: a commit that was answered survives a power cut.
//! The statements in the files below use nothing that PostgreSQL lacks; what differs is in this file.

mod deployments;
mod functions;
mod gateways;
mod keys;
mod members;
mod rows;

use crate::{
    Change, Deployment, Gateway, Key, Member, Page, Paged, Prepared, Store, StoreError,
    StoredVersion, changes::Changes,
};
use async_trait::async_trait;
use epsilon_api::{
    build::Built,
    error::ErrorBody,
    function::Version,
    ids::{DeploymentId, FunctionName, GatewayId, VersionNumber, VmId},
};
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use sqlx::{
    SqlSafeStr, SqlitePool, Transaction,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{fs, io, os::unix::fs::OpenOptionsExt, path::Path, time::Duration};

/// How long a statement waits for another process that holds the file (a backup, a shell).
const BUSY: Duration = Duration::from_secs(5);
/// How long an operation waits for a connection before it fails.
const ACQUIRE: Duration = Duration::from_secs(10);
/// Connections that read. The control API is the only reader; a handful of people look at once.
const READERS: u32 = 4;

type Tx = Transaction<'static, sqlx::Sqlite>;

/// The schema, step by step. Steps are only ever added.
const MIGRATIONS: [(i64, &str, &str); 2] = [
    (1, "begin", include_str!("../migrations/sqlite/0001_begin.sql")),
    (2, "fleet", include_str!("../migrations/sqlite/0002_fleet.sql")),
];

/// See the module.
#[derive(Debug)]
pub(crate) struct Sqlite {
    write: SqlitePool,
    read: SqlitePool,
    changes: Changes,
}

impl Sqlite {
    /// Opens or makes the file.
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Open {
            path: path.to_owned(),
            source,
        };
        ensure_private(path).map_err(|err| refused(err.into()))?;

        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY);
        let pool = || SqlitePoolOptions::new().acquire_timeout(ACQUIRE);
        let write = pool()
            .max_connections(1)
            .connect_with(options.clone())
            .await
            .map_err(|err| refused(err.into()))?;
        let steps = MIGRATIONS.map(|(version, name, sql)| {
            Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
        });
        Migrator::with_migrations(steps.into())
            .run(&write)
            .await
            .map_err(|err| refused(err.into()))?;
        let read = pool().max_connections(READERS).connect_lazy_with(options.read_only(true));
        Ok(Self { write, read, changes: Changes::new() })
    }

    /// A transaction that will write. Taking the write lock at once means that it never has to be
    /// given up half-way.
    async fn begin(&self) -> Result<Tx, StoreError> {
        Ok(self.write.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// Ends a transaction; who listens hears of the change when it can be read.
    async fn commit(&self, tx: Tx, change: Change) -> Result<(), StoreError> {
        tx.commit().await?;
        self.changes.tell(change);
        Ok(())
    }
}

/// Makes the file, readable by its owner only, before SQLite would make it readable by all: settings of
/// functions may hold secrets. The WAL takes over the mode.
fn ensure_private(path: &Path) -> io::Result<()> {
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map(drop),
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn begin_deployment(
        &self,
        id: &DeploymentId,
        gateway: &GatewayId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        deployments::begin(&self.write, id, gateway, now).await
    }

    async fn prepare(
        &self,
        id: &DeploymentId,
        built: &Built,
        now: Timestamp,
    ) -> Result<Vec<Prepared>, StoreError> {
        let mut tx = self.begin().await?;
        let prepared = deployments::prepare(&mut tx, id, built, now).await?;
        tx.commit().await?;
        Ok(prepared)
    }

    async fn activate(&self, id: &DeploymentId, now: Timestamp) -> Result<Deployment, StoreError> {
        let mut tx = self.begin().await?;
        deployments::activate(&mut tx, id, now).await?;
        let deployment = deployments::get(&mut *tx, id).await?;
        self.commit(tx, Change::Routes).await?;
        Ok(deployment)
    }

    async fn fail_deployment(
        &self,
        id: &DeploymentId,
        error: &ErrorBody,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        deployments::fail(&mut tx, id, error, now).await?;
        Ok(tx.commit().await?)
    }

    async fn fail_unfinished(
        &self,
        gateway: &GatewayId,
        dead_before: Timestamp,
        error: &ErrorBody,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let mut tx = self.begin().await?;
        let unfinished = deployments::unfinished(&mut *tx, gateway, dead_before).await?;
        for id in &unfinished {
            deployments::fail(&mut tx, id, error, now).await?;
        }
        tx.commit().await?;
        Ok(unfinished.len() as u64)
    }

    async fn deployment(&self, id: &DeploymentId) -> Result<Deployment, StoreError> {
        deployments::get(&self.read, id).await
    }

    async fn deployments(&self, page: &Page) -> Result<Paged<Deployment>, StoreError> {
        deployments::list(&self.read, page).await
    }

    async fn snapshot(&self) -> Result<Vec<Version>, StoreError> {
        functions::snapshot(&self.read).await
    }

    async fn functions(&self, page: &Page) -> Result<Paged<Version>, StoreError> {
        functions::list(&self.read, page).await
    }

    async fn versions(
        &self,
        name: &FunctionName,
        page: &Page,
    ) -> Result<Paged<StoredVersion>, StoreError> {
        let mut tx = self.read.begin().await?;
        functions::versions(&mut tx, name, page).await
    }

    async fn rollback(
        &self,
        name: &FunctionName,
        to: Option<VersionNumber>,
    ) -> Result<Version, StoreError> {
        let mut tx = self.begin().await?;
        let version = functions::rollback(&mut tx, name, to).await?;
        self.commit(tx, Change::Routes).await?;
        Ok(version)
    }

    async fn delete_function(&self, name: &FunctionName) -> Result<Version, StoreError> {
        let mut tx = self.begin().await?;
        let version = functions::delete(&mut tx, name).await?;
        self.commit(tx, Change::Routes).await?;
        Ok(version)
    }

    async fn replace_key(&self, gateway: &GatewayId, key: &Key) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        keys::replace(&mut tx, gateway, key).await?;
        Ok(tx.commit().await?)
    }

    async fn key(&self, id: &str) -> Result<Option<Key>, StoreError> {
        keys::get(&self.read, id).await
    }

    async fn set_draining(&self, vm: &VmId, draining: bool) -> Result<(), StoreError> {
        let statement = if draining {
            "INSERT INTO draining_vms (id) VALUES ($1) ON CONFLICT (id) DO NOTHING"
        } else {
            "DELETE FROM draining_vms WHERE id = $1"
        };
        let mut tx = self.begin().await?;
        sqlx::query(statement).bind(vm.as_str()).execute(&mut *tx).await?;
        self.commit(tx, Change::Draining).await
    }

    async fn draining(&self) -> Result<Vec<VmId>, StoreError> {
        let ids: Vec<String> = sqlx::query_scalar("SELECT id FROM draining_vms ORDER BY id")
            .fetch_all(&self.read)
            .await?;
        ids.iter().map(|id| rows::parse("VM id", id)).collect()
    }

    async fn join(&self, member: &Member, key: &Key) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        members::join(&mut tx, member, key).await?;
        self.commit(tx, Change::Members).await
    }

    async fn beat(&self, id: &VmId, now: Timestamp) -> Result<(), StoreError> {
        members::beat(&self.write, id, now).await
    }

    async fn leave(&self, id: &VmId) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        members::leave(&mut tx, id).await?;
        self.commit(tx, Change::Members).await
    }

    async fn members(&self) -> Result<Vec<Member>, StoreError> {
        members::list(&self.read).await
    }

    async fn gateway_beat(&self, gateway: &Gateway) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        match gateways::beat(&mut tx, gateway).await? {
            true => self.commit(tx, Change::Members).await,
            false => Ok(tx.commit().await?),
        }
    }

    async fn gateways(&self) -> Result<Vec<Gateway>, StoreError> {
        gateways::list(&self.read).await
    }

    async fn lead(
        &self,
        gateway: &GatewayId,
        role: &str,
        lease: Duration,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        gateways::lead(&self.write, gateway, role, lease, now).await
    }

    fn changes(&self) -> BoxStream<'static, Change> {
        self.changes.listen()
    }
}
