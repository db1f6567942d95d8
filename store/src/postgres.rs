//! The store in PostgreSQL, for several gateways. Opens it; the statements are in `sql`.
//!
//! The URL is that of libpq:
//! `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full&sslrootcert=FILE`, a socket by
//! `?host=/run/postgresql`. While the server is unavailable, operations fail within seconds with
//! [`StoreError::Unavailable`]; they succeed again when it is back, without a restart.

mod listen;

use crate::{
    StoreError,
    changes::Changes,
    sql::{self, Engine, Sql},
};
use sqlx::{
    ConnectOptions, Connection, SqlSafeStr,
    any::AnyConnectOptions,
    migrate::{Migration, MigrationType, Migrator},
    postgres::PgConnectOptions,
};
use std::{error::Error, io, time::Duration};
use tokio::time::timeout;

/// Session settings of each connection.
/// - A writer waits for its lock as long as it would for a connection.
/// - No statement runs longer than an operation may take.
/// - A gateway that vanished within a transaction blocks the others only for this long.
const SESSION: &str = "SET lock_timeout = '3s'; SET statement_timeout = '5s'; \
                       SET idle_in_transaction_session_timeout = '5s'";
/// Connections of one gateway, in addition to the one that listens. Operations take about a
/// millisecond and calls need none; ten gateways fit into the hundred connections of a small
/// server.
const CONNECTIONS: u32 = 6;
/// How long an operation waits for a connection. Connecting is retried during that time, so this is
/// what an outage costs each operation.
const ACQUIRE: Duration = Duration::from_secs(2);
/// Time limit of an operation; they take milliseconds.
const LIMIT: Duration = Duration::from_secs(5);
/// How long a start waits for the server's first answer.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a start waits for the migration: another gateway may be running it.
const MIGRATE: Duration = Duration::from_secs(60);

/// Migrations in order. They are only ever appended, and only add to the schema: the previous
/// release runs on the newer schema, so that an upgrade can be undone.
const MIGRATIONS: [(i64, &str, &str); 5] = [
    (1, "begin", include_str!("../migrations/postgres/0001_begin.sql")),
    (2, "traffic", include_str!("../migrations/postgres/0002_traffic.sql")),
    (3, "retention", include_str!("../migrations/postgres/0003_retention.sql")),
    (4, "hooks", include_str!("../migrations/postgres/0004_hooks.sql")),
    (5, "parts", include_str!("../migrations/postgres/0005_parts.sql")),
];

/// Connects to the server and migrates the database's schema.
pub(crate) async fn open(url: &str) -> Result<Sql, StoreError> {
    let parse =
        |err: sqlx::Error| StoreError::Connect { to: "this URL".into(), source: err.into() };
    let options: PgConnectOptions = url.parse().map_err(parse)?;
    let any: AnyConnectOptions = url.parse().map_err(parse)?;
    let refused = |source| StoreError::Connect { to: display_address(&options), source };
    migrate(&options).await.map_err(refused)?;

    let changes = Changes::new();
    let listener = listen::spawn(options.clone(), changes.clone()).await?;
    let pool = sql::pool(SESSION)
        .max_connections(CONNECTIONS)
        .acquire_timeout(ACQUIRE)
        .connect_lazy_with(any);
    Ok(Sql {
        engine: Engine::Postgres,
        write: pool.clone(),
        read: pool,
        changes,
        known: MIGRATIONS.map(|(version, ..)| version).into_iter().max().unwrap_or(0),
        limit: LIMIT,
        _listener: Some(listener),
    })
}

/// Connects outside of the pool, which would only report that it timed out.
async fn migrate(options: &PgConnectOptions) -> Result<(), Box<dyn Error + Send + Sync>> {
    let late = |what| io::Error::new(io::ErrorKind::TimedOut, what);
    let mut connection = timeout(CONNECT, options.connect())
        .await
        .map_err(|_| late("the server does not answer"))??;
    let steps = MIGRATIONS.map(|(version, name, sql)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    // Gateways that start at once are serialized by the migrator's lock.
    let mut migrator = Migrator::with_migrations(steps.into());
    migrator.set_ignore_missing(true);
    // Not `run`: its future cannot be sent to another thread (rust-lang/rust#100013).
    let run = migrator.run_direct(None, &mut connection, false);
    timeout(MIGRATE, run).await.map_err(|_| late("the schema is not up to date yet"))??;
    Ok(connection.close().await?)
}

/// The server's address, without secrets.
fn display_address(options: &PgConnectOptions) -> String {
    let host = match options.get_socket() {
        Some(folder) => folder.display().to_string(),
        None => options.get_host().to_owned(),
    };
    let database = options.get_database().unwrap_or_else(|| options.get_username());
    format!("{host}:{}/{database}", options.get_port())
}
