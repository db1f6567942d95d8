//! The store in SQL, once for both back ends: every statement runs unchanged on SQLite and on
//! PostgreSQL. Differences are here (serializing writers, announcing changes) and in `sqlite` and
//! `postgres` (connections, schema).
//!
//! A transaction that changes functions or deployments takes the write lock first: SQLite has one
//! writer anyway, and on PostgreSQL the writers of all gateways queue for one advisory lock. So a
//! transaction sees all that was committed before and nothing unfinished, on both alike. Heartbeats
//! and leases are single statements and take no lock.
//!
//! `operations/` implements the store's traits: one transaction and its time limit each. The
//! statements are in the files beside it.

pub(crate) mod backup;
mod deployments;
mod functions;
mod gateways;
mod hooks;
mod images;
mod keys;
mod members;
mod operations;
mod retention;
mod rows;
mod serving;
mod traffic;

use crate::{Change, Shared, StoreError, changes::Changes};
use futures_util::stream::BoxStream;
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

impl Shared for Sql {
    fn is_shared(&self) -> bool {
        self.engine == Engine::Postgres
    }

    fn changes(&self) -> BoxStream<'static, Change> {
        self.changes.listen()
    }
}
