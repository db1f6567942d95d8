//! Retention: removes versions beyond the newest ones of their function. What becomes of their
//! images is in `images.rs`.

use super::{Tx, images, rows, traffic};
use crate::StoreError;
use epsilon_api::{function::Version, ids::VersionId};
use jiff::Timestamp;
use std::collections::HashSet;

/// Removes the versions that are not among the newest `keep` of their function, do not serve, have
/// no share of its calls, and are not in the plan of a running deployment.
pub(super) async fn prune(
    tx: &mut Tx,
    keep: u32,
    now: Timestamp,
) -> Result<Vec<VersionId>, StoreError> {
    let found: Vec<(String, i64)> = sqlx::query_as(
        "SELECT v.function, v.number FROM versions v JOIN functions f ON f.name = v.function \
         WHERE v.activated_at IS NOT NULL AND v.number <> f.active_number \
          AND (SELECT COUNT(*) FROM versions n WHERE n.function = v.function \
               AND n.activated_at IS NOT NULL AND n.number > v.number) >= $1 \
         ORDER BY v.function, v.number",
    )
    .bind(i64::from(keep))
    .fetch_all(&mut **tx)
    .await?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let pinned = pinned(tx).await?;
    let mut removed = Vec::with_capacity(found.len());
    for (function, number) in found {
        let function = rows::parse("function name", &function)?;
        let version = VersionId { function, number: rows::number(number)? };
        if pinned.contains(&version) {
            continue;
        }
        images::remove(tx, &version, now).await?;
        removed.push(version);
    }
    images::delete_needed(tx).await?;
    Ok(removed)
}

/// Removes this version, unless it has a share of the calls or a running deployment needs it;
/// returns whether it did.
pub(super) async fn remove_one(
    tx: &mut Tx,
    version: &VersionId,
    now: Timestamp,
) -> Result<bool, StoreError> {
    if pinned(tx).await?.contains(version) {
        return Ok(false);
    }
    images::remove(tx, version, now).await?;
    images::delete_needed(tx).await?;
    Ok(true)
}

/// The versions that running deployments need, and those that get a share of calls.
async fn pinned(tx: &mut Tx) -> Result<HashSet<VersionId>, StoreError> {
    let plans: Vec<String> =
        sqlx::query_scalar("SELECT plan FROM deployments WHERE state = 'running'")
            .fetch_all(&mut **tx)
            .await?;
    let splits = traffic::list(tx).await?;
    let mut pinned: HashSet<VersionId> =
        splits.iter().flat_map(|split| split.candidates.iter().map(Version::id)).collect();
    for plan in plans {
        let plan = rows::plan(&plan)?.into_iter();
        pinned.extend(plan.map(|one| VersionId { function: one.name, number: one.version }));
    }
    Ok(pinned)
}
