//! Copies a store's SQLite file while a gateway writes it, for `epsilon backup`, and lists the
//! images of its versions, which the backup contains too. Only SQLite: a server has its own tools.

use super::{Sql, rows};
use crate::{FleetStore as _, FunctionStore as _, StoreError, TrafficStore as _, sqlite};
use epsilon_api::{function::ImageRef, ids::VersionId};
use jiff::Timestamp;
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};
use std::{collections::HashSet, fs, io, path::Path, time::Duration};

/// How long the copy waits for a writer, which locks the file for milliseconds.
const BUSY: Duration = Duration::from_secs(10);

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file cannot be opened, read or written.
    #[error("the store cannot be copied")]
    Store(#[from] StoreError),
    /// The file of the copy cannot be written.
    #[error("the copy of the store cannot be written")]
    File(#[from] io::Error),
    /// Its schema is newer than this release.
    #[error("the store was written by a later release")]
    Newer,
}

/// What is in a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackedUp {
    /// Number of functions with an active version.
    pub functions: usize,
    /// All versions that can serve: the active ones, and those that a rollback may choose.
    pub versions: Vec<BackedUpVersion>,
    /// Time of the last heartbeat of a gateway in it.
    pub last_heartbeat: Option<Timestamp>,
}

/// A version and what it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackedUpVersion {
    /// Function and number.
    pub id: VersionId,
    /// Its image.
    pub image: ImageRef,
    /// The runtime base below it, where it can be mounted into a cell.
    pub base: Option<ImageRef>,
    /// Calls go to it now: it is the active one, or has a share of a split.
    pub serves: bool,
}

/// Copies a store to a new file: one consistent state, whatever is written meanwhile. Only its
/// owner can read the copy.
///
/// # Errors
/// [`BackupError`]; what is left of the copy is the caller's to remove.
pub async fn back_up(from: &Path, to: &Path) -> Result<BackedUp, BackupError> {
    sqlite::ensure_private(to)?;
    let options = SqliteConnectOptions::new().filename(from).busy_timeout(BUSY);
    let mut source = options.connect().await.map_err(StoreError::from)?;
    let copied = async {
        let target = to.to_str().ok_or_else(|| io::Error::other("its path is not UTF-8"))?;
        sqlx::query("VACUUM INTO ?1")
            .bind(target)
            .execute(&mut source)
            .await
            .map_err(StoreError::from)?;
        Ok(())
    };
    let copied: Result<(), BackupError> = copied.await;
    let closed = source.close().await;
    copied?;
    closed.map_err(StoreError::from)?;
    read(to).await
}

/// Reads a store's file without changing it: a second copy is opened in its place, because opening
/// migrates the schema.
async fn read(file: &Path) -> Result<BackedUp, BackupError> {
    let scratch = file.with_extension("read");
    fs::copy(file, &scratch)?;
    let store = crate::open_sql(&scratch.to_string_lossy()).await?;
    let found = contents(&store).await;
    store.read.close().await;
    store.write.close().await; // the last connection removes the write-ahead log
    for ending in ["", "-wal", "-shm"] {
        let mut name = scratch.as_os_str().to_owned();
        name.push(ending);
        let _gone_or_never_there = fs::remove_file(name);
    }
    found
}

async fn contents(store: &Sql) -> Result<BackedUp, BackupError> {
    if crate::copy::schema(store).await? > store.known {
        return Err(BackupError::Newer);
    }
    let active = store.snapshot().await?;
    let split = store.traffic().await?.into_iter().flat_map(|traffic| traffic.candidates);
    let serving: HashSet<VersionId> =
        active.iter().map(|version| version.id()).chain(split.map(|v| v.id())).collect();
    let found: Vec<rows::VersionRow> = sqlx::query_as(
        "SELECT function, number, project, deployment, image, digest, spec, created_at, parts \
         FROM versions WHERE activated_at IS NOT NULL ORDER BY function, number",
    )
    .fetch_all(&store.read)
    .await
    .map_err(StoreError::from)?;
    let mut versions = Vec::with_capacity(found.len());
    for row in found {
        let version = rows::version(row)?;
        let (id, base) = (version.id(), version.parts.map(|parts| parts.base));
        let serves = serving.contains(&id);
        versions.push(BackedUpVersion { id, image: version.image, base, serves });
    }
    let gateways = store.gateways().await?;
    let last_heartbeat = gateways.into_iter().map(|gateway| gateway.seen_at).max();
    Ok(BackedUp { functions: active.len(), versions, last_heartbeat })
}

/// Sets new digests of images in a store's file that no gateway uses: engines of two kinds know the
/// same image by two digests.
///
/// # Errors
/// [`BackupError`]; nothing is changed then.
pub async fn rename_images(file: &Path, images: &[(ImageRef, String)]) -> Result<(), BackupError> {
    let options = SqliteConnectOptions::new().filename(file).busy_timeout(BUSY);
    let mut store = options.connect().await.map_err(StoreError::from)?;
    let renamed = async {
        let mut write = store.begin().await?;
        for (image, digest) in images {
            for statement in [
                "UPDATE versions SET digest = ?1 WHERE image = ?2 AND digest = ?3",
                "UPDATE unneeded_images SET digest = ?1 WHERE image = ?2 AND digest = ?3",
                "UPDATE versions SET parts = json_set(parts, '$.base.digest', ?1) \
                 WHERE json_extract(parts, '$.base.reference') = ?2 \
                 AND json_extract(parts, '$.base.digest') = ?3",
            ] {
                let update = sqlx::query(statement);
                let update = update.bind(digest).bind(&image.reference).bind(&image.digest);
                update.execute(&mut *write).await?;
            }
        }
        write.commit().await
    };
    let renamed = renamed.await.map_err(StoreError::from);
    store.close().await.map_err(StoreError::from)?;
    Ok(renamed?)
}
