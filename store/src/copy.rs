//! Copies a store from one back end to the other, for `epsilon store copy`: every row of every
//! table, read in one snapshot of the source and written in one transaction of the target. Below
//! the trait, because it must not lose anything: numbers of deleted functions, the creator of a
//! key, the order of deployments.

use crate::{
    Change, FleetStore as _, StoreError,
    sql::{Engine, Sql, Tx},
};
use epsilon_api::ids::GatewayId;
use jiff::Timestamp;
use sqlx::{Any, AssertSqlSafe, Row, any::AnyRow};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A gateway with a heartbeat this recent may be running: three heartbeats.
const IN_USE: Duration = Duration::from_secs(15);
/// How often the source is checked for a new heartbeat.
const HEARTBEAT_POLL: Duration = Duration::from_millis(500);
/// Rows per statement. Times the widest table, far below the parameters that a statement may have
/// (32,766 in SQLite).
const BATCH_ROWS: u32 = 500;

/// Why nothing was copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The source file does not exist.
    #[error("there is no store at `{0}`")]
    NoSource(String),
    /// The source cannot be opened or read.
    #[error("the source cannot be read")]
    Source(#[source] StoreError),
    /// The target cannot be opened or written.
    #[error("the target cannot be written")]
    Target(#[source] StoreError),
    /// The source's schema has parts that this release does not know and would lose.
    #[error("the source was written by a later release")]
    Newer,
    /// A running gateway uses the source; what it writes after the copy would be lost.
    #[error("gateway `{0}` is using the source")]
    InUse(GatewayId),
    /// The target already holds rows.
    #[error("the target is not empty: it holds rows of {0}")]
    NotEmpty(&'static str),
}

/// Rows of a table that were copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Name of the table for people.
    pub what: &'static str,
    /// Number of rows.
    pub rows: u64,
}

/// Progress of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A gateway sent a heartbeat a moment ago: waits whether another one follows.
    Waiting {
        /// The gateway.
        gateway: GatewayId,
        /// Longest wait.
        up_to: Duration,
    },
    /// Progress in one table.
    Copying {
        /// Rows copied so far.
        copied: Copied,
        /// Rows of the table in all.
        of: u64,
    },
}

/// Type of a column, on both back ends.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Number,
}
use Kind::{Number, Text};

struct Table {
    name: &'static str,
    /// Name of the table for people.
    what: &'static str,
    /// Columns of the primary key.
    key: &'static str,
    columns: &'static [(&'static str, Kind)],
}

/// All tables, referenced ones first. A test compares this with both schemas.
const TABLES: [Table; 11] = [
    Table {
        name: "functions",
        what: "functions",
        key: "name",
        columns: &[
            ("name", Text),
            ("project", Text),
            ("active_number", Number),
            ("last_number", Number),
        ],
    },
    Table {
        name: "deployments",
        what: "deployments",
        key: "seq",
        columns: &[
            ("seq", Number),
            ("id", Text),
            ("project", Text),
            ("state", Text),
            ("created_at", Text),
            ("ended_at", Text),
            ("error", Text),
            ("plan", Text),
            ("gateway", Text),
            ("source", Text),
        ],
    },
    Table {
        name: "versions",
        what: "versions",
        key: "function, number",
        columns: &[
            ("function", Text),
            ("number", Number),
            ("project", Text),
            ("deployment", Text),
            ("image", Text),
            ("digest", Text),
            ("spec", Text),
            ("created_at", Text),
            ("activated_at", Text),
            ("parts", Text),
        ],
    },
    Table {
        name: "traffic",
        what: "splits",
        key: "function",
        columns: &[
            ("function", Text),
            ("stable", Number),
            ("split", Text),
            ("since", Text),
            ("aborted", Text),
        ],
    },
    Table {
        name: "keys",
        what: "keys",
        key: "id",
        columns: &[
            ("id", Text),
            ("role", Text),
            ("hash", Text),
            ("created_at", Text),
            ("gateway", Text),
            ("member", Text),
        ],
    },
    Table {
        name: "unneeded_images",
        what: "unneeded images",
        key: "image",
        columns: &[
            ("image", Text),
            ("digest", Text),
            ("since", Text),
            ("state", Text),
            ("seen_by", Number),
        ],
    },
    Table { name: "draining_vms", what: "draining VMs", key: "id", columns: &[("id", Text)] },
    Table {
        name: "members",
        what: "members",
        key: "id",
        columns: &[
            ("id", Text),
            ("kind", Text),
            ("protocol", Number),
            ("address", Text),
            ("tls", Number),
            ("memory_bytes", Number),
            ("millicores", Number),
            ("joined_at", Text),
            ("seen_at", Text),
        ],
    },
    Table {
        name: "gateways",
        what: "gateways",
        key: "id",
        columns: &[("id", Text), ("public_key", Text), ("control_url", Text), ("seen_at", Text)],
    },
    Table {
        name: "leaders",
        what: "leases",
        key: "role",
        columns: &[("role", Text), ("gateway", Text), ("ends_at", Text)],
    },
    Table {
        name: "hook_deliveries",
        what: "webhooks' deliveries",
        key: "project, id",
        columns: &[
            ("project", Text),
            ("id", Text),
            ("digest", Text),
            ("deployment", Text),
            ("seen_at", Text),
        ],
    },
];

/// Copies everything from one store to an empty one. When it fails, the target stays empty.
///
/// A source that a gateway uses is refused; one whose gateway has just stopped is waited for, at
/// most 15 s.
///
/// # Errors
/// [`CopyError`]. A target that does not exist is created.
pub async fn copy(
    from: &str,
    to: &str,
    report: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<Copied>, CopyError> {
    if let Some(path) = crate::file(from).map_err(CopyError::Source)?
        && !path.exists()
    {
        return Err(CopyError::NoSource(path.display().to_string()));
    }
    let source = crate::open_sql(from).await.map_err(CopyError::Source)?;
    if schema(&source).await.map_err(CopyError::Source)? > source.known {
        return Err(CopyError::Newer);
    }
    refuse_in_use(&source, report).await?;

    let target = crate::open_sql(to).await.map_err(CopyError::Target)?;
    let mut write = target.begin().await.map_err(CopyError::Target)?;
    for table in &TABLES {
        if table.count(&mut write).await.map_err(CopyError::Target)? > 0 {
            return Err(CopyError::NotEmpty(table.what));
        }
    }
    let mut read = source.begin_snapshot().await.map_err(CopyError::Source)?;
    let mut copied = Vec::with_capacity(TABLES.len());
    for table in &TABLES {
        copied.push(table.copy(&mut read, &mut write, report).await?);
    }
    if target.engine == Engine::Postgres {
        advance_sequence(&mut write).await.map_err(CopyError::Target)?;
    }
    target.commit(write, Change::Resync).await.map_err(CopyError::Target)?;
    drop(read);
    // In this order: the last connection to a file writes its log into the file itself, so that
    // moving the file moves everything; a connection that only reads leaves the log.
    for pool in [source.read, source.write, target.read, target.write] {
        pool.close().await;
    }
    Ok(copied)
}

/// The newest step that was taken.
pub(crate) async fn schema(store: &Sql) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations")
        .fetch_one(&store.read)
        .await?)
}

async fn refuse_in_use(source: &Sql, report: &(dyn Fn(Progress) + Sync)) -> Result<(), CopyError> {
    let read = async || source.gateways().await.map_err(CopyError::Source);
    let before = read().await?;
    let fresh = before.iter().filter_map(|gateway| {
        let ago = Timestamp::now().duration_since(gateway.seen_at).unsigned_abs();
        Some((gateway, IN_USE.checked_sub(ago)?))
    });
    let Some((gateway, up_to)) = fresh.max_by_key(|(_, left)| *left) else { return Ok(()) };
    report(Progress::Waiting { gateway: gateway.id.clone(), up_to });
    let until = Instant::now() + up_to;
    while Instant::now() < until {
        sleep(HEARTBEAT_POLL).await;
        if let Some(gateway) = read().await?.into_iter().find(|gateway| !before.contains(gateway)) {
            return Err(CopyError::InUse(gateway.id));
        }
    }
    Ok(())
}

/// Rows inserted with their number do not advance PostgreSQL's sequence; SQLite's they do.
async fn advance_sequence(write: &mut Tx) -> Result<(), StoreError> {
    sqlx::query(
        "SELECT setval(pg_get_serial_sequence('deployments', 'seq'), MAX(seq)) FROM deployments \
         HAVING COUNT(*) > 0",
    )
    .execute(&mut **write)
    .await?;
    Ok(())
}

impl Table {
    async fn count(&self, tx: &mut Tx) -> Result<u64, StoreError> {
        let statement = format!("SELECT COUNT(*) FROM {}", self.name);
        let rows: i64 = sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&mut **tx).await?;
        Ok(rows.unsigned_abs())
    }

    async fn copy(
        &self,
        read: &mut Tx,
        write: &mut Tx,
        report: &(dyn Fn(Progress) + Sync),
    ) -> Result<Copied, CopyError> {
        let total = self.count(read).await.map_err(CopyError::Source)?;
        let mut copied = Copied { what: self.what, rows: 0 };
        report(Progress::Copying { copied, of: total });
        while copied.rows < total {
            let rows = self.read(read, copied.rows).await.map_err(CopyError::Source)?;
            if rows.is_empty() {
                break;
            }
            self.write(write, &rows).await.map_err(CopyError::Target)?;
            copied.rows += rows.len() as u64;
            report(Progress::Copying { copied, of: total });
        }
        Ok(copied)
    }

    fn names(&self) -> String {
        self.columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    /// The transaction sees one snapshot, so that the parts fit together.
    async fn read(&self, tx: &mut Tx, from: u64) -> Result<Vec<AnyRow>, StoreError> {
        let columns = self.names();
        let Self { name, key, .. } = self;
        let statement = format!("SELECT {columns} FROM {name} ORDER BY {key} LIMIT $1 OFFSET $2");
        let rows = sqlx::query(AssertSqlSafe(statement))
            .bind(i64::from(BATCH_ROWS))
            .bind(i64::try_from(from).unwrap_or(i64::MAX))
            .fetch_all(&mut **tx)
            .await?;
        Ok(rows)
    }

    /// One statement for all rows: a server may be milliseconds away.
    async fn write(&self, tx: &mut Tx, rows: &[AnyRow]) -> Result<(), StoreError> {
        let width = self.columns.len();
        let row = |n: usize| {
            let places: Vec<_> = (1..=width).map(|i| format!("${}", n * width + i)).collect();
            format!("({})", places.join(", "))
        };
        let values = (0..rows.len()).map(row).collect::<Vec<_>>().join(", ");
        let columns = self.names();
        let statement = format!("INSERT INTO {} ({columns}) VALUES {values}", self.name);
        let mut insert = sqlx::query::<Any>(AssertSqlSafe(statement)).persistent(false);
        for row in rows {
            for (index, (_, kind)) in self.columns.iter().enumerate() {
                insert = match kind {
                    Text => insert.bind(row.try_get::<Option<String>, _>(index)?),
                    Number => insert.bind(row.try_get::<Option<i64>, _>(index)?),
                };
            }
        }
        insert.execute(&mut **tx).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Postgres;

    /// Tables and columns, sorted, as the database reports them.
    async fn columns(store: &Sql) -> Vec<(String, String)> {
        let statement = match store.engine {
            Engine::Sqlite => {
                "SELECT tables.name, columns.name FROM sqlite_master AS tables \
                 JOIN pragma_table_info(tables.name) AS columns \
                 WHERE tables.type = 'table' AND tables.name NOT LIKE 'sqlite%' ORDER BY 1, 2"
            }
            Engine::Postgres => {
                "SELECT table_name::text, column_name::text FROM information_schema.columns \
                 WHERE table_schema = 'public' ORDER BY 1, 2"
            }
        };
        let mut found: Vec<(String, String)> =
            sqlx::query_as(statement).fetch_all(&store.read).await.unwrap();
        found.retain(|(table, _)| table != "_sqlx_migrations");
        found.sort();
        found
    }

    #[tokio::test]
    async fn no_table_and_no_column_is_forgotten() {
        let mut known: Vec<(String, String)> = TABLES
            .iter()
            .flat_map(|table| table.columns.iter().map(|(name, _)| (table.name, *name)))
            .map(|(table, column)| (table.into(), column.into()))
            .collect();
        known.sort();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("epsilon.db").display().to_string();
        for url in [file, Postgres::shared().database().await] {
            assert_eq!(columns(&crate::open_sql(&url).await.unwrap()).await, known, "{url}");
        }
    }
}
