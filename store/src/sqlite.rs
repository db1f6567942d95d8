//! The store in one SQLite file, for one gateway. Opens it; the statements are in `sql`.
//!
//! One connection writes (SQLite has one writer anyway; queueing for it is fairer than its busy
//! loop), a few read. WAL with `synchronous = FULL`: an acknowledged commit survives a power cut.

use crate::{
    StoreError,
    changes::Changes,
    sql::{self, Engine, Sql},
};
use sqlx::{
    AnyPool, ConnectOptions, Connection, SqlSafeStr,
    any::AnyConnectOptions,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};
use std::{error::Error, fs, io, os::unix::fs::OpenOptionsExt, path::Path, time::Duration};

/// `busy_timeout`: how long a statement waits for another process that locks the file (a backup, a
/// shell), in ms.
const SESSION: &str =
    "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000";
/// How long an operation waits for a connection before it fails.
const ACQUIRE: Duration = Duration::from_secs(10);
/// Time limit of an operation: an overloaded disk is slow; one that hangs is not waited for.
const LIMIT: Duration = Duration::from_secs(30);
/// Connections for reading. The control API is the only reader; a handful of people use it at once.
const READERS: u32 = 4;

/// Migrations in order. They are only ever appended, and only add to the schema: the previous
/// release runs on the newer schema, so that an upgrade can be undone.
const MIGRATIONS: [(i64, &str, &str); 6] = [
    (1, "begin", include_str!("../migrations/sqlite/0001_begin.sql")),
    (2, "fleet", include_str!("../migrations/sqlite/0002_fleet.sql")),
    (3, "traffic", include_str!("../migrations/sqlite/0003_traffic.sql")),
    (4, "retention", include_str!("../migrations/sqlite/0004_retention.sql")),
    (5, "hooks", include_str!("../migrations/sqlite/0005_hooks.sql")),
    (6, "parts", include_str!("../migrations/sqlite/0006_parts.sql")),
];

/// Opens the file, or creates it.
pub(crate) async fn open(path: &Path) -> Result<Sql, StoreError> {
    let refused =
        |source: Box<dyn Error + Send + Sync>| StoreError::Open { path: path.to_owned(), source };
    ensure_private(path).map_err(|err| refused(err.into()))?;
    let path = fs::canonicalize(path).map_err(|err| refused(err.into()))?;
    migrate(&path).await.map_err(refused)?;

    let pool = |options: sqlx::any::AnyPoolOptions, mode| -> Result<AnyPool, StoreError> {
        let url = url(&path, mode).parse::<AnyConnectOptions>()?;
        Ok(options.acquire_timeout(ACQUIRE).connect_lazy_with(url))
    };
    Ok(Sql {
        engine: Engine::Sqlite,
        write: pool(sql::pool(SESSION).max_connections(1), "rw")?,
        read: pool(sql::pool(SESSION).max_connections(READERS), "ro")?,
        changes: Changes::new(),
        known: MIGRATIONS.map(|(version, ..)| version).into_iter().max().unwrap_or(0),
        limit: LIMIT,
        _listener: None,
    })
}

async fn migrate(path: &Path) -> Result<(), Box<dyn Error + Send + Sync>> {
    let options = SqliteConnectOptions::new().filename(path).journal_mode(SqliteJournalMode::Wal);
    let mut connection = options.connect().await?;
    let steps = MIGRATIONS.map(|(version, name, sql)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    let mut migrator = Migrator::with_migrations(steps.into());
    migrator.set_ignore_missing(true);
    // Not `run`: its future cannot be sent to another thread (rust-lang/rust#100013).
    let run = migrator.run_direct(None, &mut connection, false);
    run.await?;
    Ok(connection.close().await?)
}

/// Creates the file, readable by its owner only, before SQLite would create it readable by all:
/// settings of functions may hold secrets. The WAL takes over the mode.
pub(crate) fn ensure_private(path: &Path) -> io::Result<()> {
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map(drop),
    }
}

/// A URL that the driver decodes to this path, whatever characters it has.
fn url(path: &Path, mode: &str) -> String {
    let mut url = String::from("sqlite://");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => {
                url.push(char::from(*byte));
            }
            _ => url.push_str(&format!("%{byte:02X}")),
        }
    }
    format!("{url}?mode={mode}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FleetStore, Gateway};
    use epsilon_api::ids::GatewayId;
    use jiff::Timestamp;

    #[tokio::test]
    async fn full_disk_has_its_own_error_and_is_readable() {
        sqlx::any::install_default_drivers();
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder.path().join("epsilon.db")).await.unwrap();
        // Like a full disk: SQLite reports the same when it gets no further page.
        sqlx::query("PRAGMA max_page_count = 1").execute(&store.write).await.unwrap();
        let gateway = || Gateway {
            id: GatewayId::random(),
            public_key: "0".repeat(64),
            control_url: "http://10.0.0.5:8081".into(),
            seen_at: Timestamp::now(),
        };
        let mut refused = None;
        for _ in 0..1000 {
            if let Err(err) = store.gateway_heartbeat(&gateway()).await {
                refused = Some(err);
                break;
            }
        }
        assert!(matches!(refused, Some(StoreError::Full(_))), "{refused:?}");
        assert!(!store.gateways().await.unwrap().is_empty());
    }
}
