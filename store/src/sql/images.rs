//! Images that no version needs any more, and versions whose removal makes them so.
//!
//! ```text
//! version removed ─▶ noted ─▶ leaving ─▶ gone ─▶ (forgotten when no gateway can use it)
//!                      ▲ └──────┐ │ still in use
//!                      └────────┼─┘
//!     a deployment brings it again: needed, the note goes
//! ```
//! A builder reuses an image that it finds where it put it. So a deployment that may have found an
//! image before it was removed is refused: `seen_by` is the newest deployment of which that can be
//! true.

use super::{Tx, rows};
use crate::{Outcome, StoreError};
use epsilon_api::{
    build::BuiltFunction,
    function::ImageRef,
    ids::{DeploymentId, FunctionName, VersionId},
};
use jiff::Timestamp;

/// Removes one version; [`delete_needed`] has to follow.
pub(super) async fn remove(
    tx: &mut Tx,
    version: &VersionId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let number = i64::from(version.number.get());
    sqlx::query(
        "INSERT INTO unneeded_images (image, digest, since) \
         SELECT image, digest, $3 FROM versions WHERE function = $1 AND number = $2 \
         ON CONFLICT (image) DO NOTHING",
    )
    .bind(version.function.as_str())
    .bind(number)
    .bind(rows::time(now))
    .execute(&mut **tx)
    .await?;
    sqlx::query("DELETE FROM versions WHERE function = $1 AND number = $2")
        .bind(version.function.as_str())
        .bind(number)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Removes the versions that a deployment prepared and that never served.
pub(super) async fn remove_prepared(
    tx: &mut Tx,
    deployment: &DeploymentId,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO unneeded_images (image, digest, since) \
         SELECT image, MIN(digest), $2 FROM versions \
         WHERE deployment = $1 AND activated_at IS NULL GROUP BY image \
         ON CONFLICT (image) DO NOTHING",
    )
    .bind(deployment.as_str())
    .bind(rows::time(now))
    .execute(&mut **tx)
    .await?;
    sqlx::query("DELETE FROM versions WHERE deployment = $1 AND activated_at IS NULL")
        .bind(deployment.as_str())
        .execute(&mut **tx)
        .await?;
    delete_needed(tx).await
}

/// Removes all versions of a function.
pub(super) async fn remove_all(
    tx: &mut Tx,
    function: &FunctionName,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO unneeded_images (image, digest, since) \
         SELECT image, MIN(digest), $2 FROM versions WHERE function = $1 GROUP BY image \
         ON CONFLICT (image) DO NOTHING",
    )
    .bind(function.as_str())
    .bind(rows::time(now))
    .execute(&mut **tx)
    .await?;
    sqlx::query("DELETE FROM versions WHERE function = $1")
        .bind(function.as_str())
        .execute(&mut **tx)
        .await?;
    delete_needed(tx).await
}

/// Records images that were made without becoming a version.
pub(super) async fn note(
    tx: &mut Tx,
    images: &[ImageRef],
    now: Timestamp,
) -> Result<(), StoreError> {
    for image in images {
        sqlx::query(
            "INSERT INTO unneeded_images (image, digest, since) VALUES ($1, $2, $3) \
             ON CONFLICT (image) DO NOTHING",
        )
        .bind(&image.reference)
        .bind(&image.digest)
        .bind(rows::time(now))
        .execute(&mut **tx)
        .await?;
    }
    delete_needed(tx).await
}

/// Deletes the records of images that a version still needs.
pub(super) async fn delete_needed(tx: &mut Tx) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM unneeded_images WHERE state = 'noted' AND EXISTS \
          (SELECT 1 FROM versions WHERE versions.image = unneeded_images.image)",
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The deployment with this sequence number uses the image: it is needed from now on, unless the
/// deployment may have found it before it was removed.
pub(super) async fn need(
    tx: &mut Tx,
    seq: i64,
    function: &BuiltFunction,
) -> Result<(), StoreError> {
    let noted: Option<(String, Option<i64>)> =
        sqlx::query_as("SELECT state, seen_by FROM unneeded_images WHERE image = $1")
            .bind(&function.image.reference)
            .fetch_optional(&mut **tx)
            .await?;
    let Some((state, seen_by)) = noted else { return Ok(()) };
    if state == "leaving" || seen_by.is_some_and(|seen_by| seen_by >= seq) {
        return Err(StoreError::ImageBeingRemoved(function.name.clone()));
    }
    sqlx::query("DELETE FROM unneeded_images WHERE image = $1")
        .bind(&function.image.reference)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Takes images that have been unneeded since before `before`, and those that were taken without a
/// reported outcome.
pub(super) async fn take(
    tx: &mut Tx,
    before: Timestamp,
    limit: u32,
) -> Result<Vec<ImageRef>, StoreError> {
    sqlx::query(
        "DELETE FROM unneeded_images WHERE state = 'gone' AND NOT EXISTS \
          (SELECT 1 FROM deployments WHERE deployments.state = 'running' \
            AND deployments.seq <= unneeded_images.seen_by)",
    )
    .execute(&mut **tx)
    .await?;
    let found: Vec<(String, String)> = sqlx::query_as(
        "SELECT image, digest FROM unneeded_images u \
         WHERE u.state <> 'gone' AND u.since <= $1 \
          AND NOT EXISTS (SELECT 1 FROM versions v WHERE v.image = u.image) \
         ORDER BY u.since, u.image LIMIT $2",
    )
    .bind(rows::time(before))
    .bind(i64::from(limit))
    .fetch_all(&mut **tx)
    .await?;
    for (image, _) in &found {
        sqlx::query("UPDATE unneeded_images SET state = 'leaving' WHERE image = $1")
            .bind(image)
            .execute(&mut **tx)
            .await?;
    }
    Ok(found.into_iter().map(|(reference, digest)| ImageRef { reference, digest }).collect())
}

/// Records the outcome of the removal of images that were taken.
pub(super) async fn taken(
    tx: &mut Tx,
    images: &[(ImageRef, Outcome)],
    now: Timestamp,
) -> Result<(), StoreError> {
    let newest: Option<i64> =
        sqlx::query_scalar("SELECT MAX(seq) FROM deployments").fetch_one(&mut **tx).await?;
    let newest = newest.unwrap_or(0);
    for (image, outcome) in images {
        let (state, seen_by) = match outcome {
            Outcome::Gone => ("gone", Some(newest)),
            Outcome::InUse => ("noted", None),
            Outcome::Unknown => ("noted", Some(newest)),
        };
        sqlx::query(
            "UPDATE unneeded_images SET state = $2, since = $3, seen_by = COALESCE($4, seen_by) \
             WHERE image = $1",
        )
        .bind(&image.reference)
        .bind(state)
        .bind(rows::time(now))
        .bind(seen_by)
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}
