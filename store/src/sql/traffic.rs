//! Splits of a function's calls: set, ended, listed. The stable version of a split is the active
//! one, so that code that ignores splits still does the right thing.

use super::{Tx, functions, rows};
use crate::{SplitRequest, StoreError, Traffic};
use epsilon_api::{
    chain::Chain,
    function::Version,
    ids::{FunctionName, VersionNumber},
    traffic::{Aborted, Share, Split, slots::Slots},
};
use jiff::Timestamp;
use sqlx::{Any, AnyExecutor};

/// Selects splits of functions whose stable version serves; the tail of the statement filters.
macro_rules! select_splits {
    ($tail:literal) => {
        concat!(
            "SELECT t.function, t.stable, t.split, t.since, t.aborted FROM traffic t \
             JOIN functions f ON f.name = t.function AND f.active_number = t.stable ",
            $tail
        )
    };
}

/// Functions that have a split, or one that was aborted.
pub(super) async fn count(on: impl AnyExecutor<'_>) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("SELECT COUNT(*) FROM traffic").fetch_one(on).await?)
}

pub(super) async fn list(tx: &mut Tx) -> Result<Vec<Traffic>, StoreError> {
    let found: Vec<rows::TrafficRow> =
        sqlx::query_as(select_splits!("ORDER BY t.function")).fetch_all(&mut **tx).await?;
    let mut all = Vec::with_capacity(found.len());
    for row in found {
        let mut traffic = rows::traffic(row)?;
        match candidates(tx, &traffic).await {
            Ok(candidates) => traffic.candidates = candidates,
            // A release without splits removed the version: the calls go to the stable one.
            Err(err @ (StoreError::VersionNotFound { .. } | StoreError::VersionRemoved { .. })) => {
                tracing::warn!(error = %Chain(&err), "Split has a version that does not exist; sending all calls to the stable version.");
                continue;
            }
            Err(err) => return Err(err),
        }
        all.push(traffic);
    }
    Ok(all)
}

/// The versions beside the stable one; none for a split that has ended.
async fn candidates(tx: &mut Tx, traffic: &Traffic) -> Result<Vec<Version>, StoreError> {
    let mut candidates = Vec::new();
    if traffic.aborted.is_none() {
        for Share { version, .. } in traffic.split.slots.shares() {
            if version != traffic.stable {
                candidates.push(functions::version(tx, &traffic.function, version).await?);
            }
        }
    }
    Ok(candidates)
}

/// The running split.
async fn running(
    on: impl AnyExecutor<'_>,
    name: &FunctionName,
) -> Result<Option<Traffic>, StoreError> {
    let select = select_splits!("WHERE t.function = $1 AND t.aborted IS NULL");
    let found = sqlx::query_as::<Any, rows::TrafficRow>(select).bind(name.as_str());
    found.fetch_optional(on).await?.map(rows::traffic).transpose()
}

/// Fails unless the active version is still the one that the caller saw, so that a newer one is not
/// undone unknowingly.
async fn require_unchanged(
    tx: &mut Tx,
    name: &FunctionName,
    seen: VersionNumber,
) -> Result<(), StoreError> {
    let active = functions::require_active(tx, name).await?.number;
    if active != seen {
        return Err(StoreError::ActiveChanged { function: name.clone(), active });
    }
    Ok(())
}

pub(super) async fn split(
    tx: &mut Tx,
    name: &FunctionName,
    seen: VersionNumber,
    wanted: &SplitRequest,
    now: Timestamp,
) -> Result<(Version, Option<Traffic>), StoreError> {
    require_unchanged(tx, name, seen).await?;
    let running = running(&mut **tx, name).await?;
    for share in &wanted.shares {
        functions::version(tx, name, share.version).await?;
    }
    let before = running.as_ref().map(|running| running.stable);
    let stable = wanted.stable_version(before)?;
    let base = running.map_or_else(|| Slots::all(stable), |running| running.split.slots);
    let slots = base.share(&wanted.shares)?;
    let version = functions::set_active(tx, name, stable).await?;
    if slots == Slots::all(stable) {
        end(tx, name).await?;
        return Ok((version, None));
    }
    let split = Split { slots, sticky: wanted.sticky.clone(), abort: wanted.abort };
    sqlx::query(
        "INSERT INTO traffic (function, stable, split, since) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (function) DO UPDATE SET stable = excluded.stable, split = excluded.split, \
         since = excluded.since, aborted = NULL",
    )
    .bind(name.as_str())
    .bind(i64::from(stable.get()))
    .bind(rows::json("split", &split)?)
    .bind(rows::time(now))
    .execute(&mut **tx)
    .await?;
    let function = name.clone();
    let mut traffic =
        Traffic { function, stable, split, since: now, aborted: None, candidates: Vec::new() };
    traffic.candidates = candidates(tx, &traffic).await?;
    Ok((version, Some(traffic)))
}

pub(super) async fn promote(
    tx: &mut Tx,
    name: &FunctionName,
    seen: VersionNumber,
    to: Option<VersionNumber>,
) -> Result<Version, StoreError> {
    require_unchanged(tx, name, seen).await?;
    let to = match to {
        Some(number) => number,
        None => {
            let running = running(&mut **tx, name).await?;
            let running =
                running.ok_or_else(|| StoreError::NothingToPromote { function: name.clone() })?;
            match candidates(tx, &running).await?.as_slice() {
                [only] => only.number,
                _ => return Err(StoreError::AmbiguousPromotion { function: name.clone() }),
            }
        }
    };
    functions::version(tx, name, to).await?;
    end(tx, name).await?;
    functions::set_active(tx, name, to).await
}

/// Whether that very split was still running.
pub(super) async fn abort(
    tx: &mut Tx,
    name: &FunctionName,
    since: Timestamp,
    why: &Aborted,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE traffic SET aborted = $3 \
         WHERE function = $1 AND since = $2 AND aborted IS NULL AND EXISTS \
          (SELECT 1 FROM functions f WHERE f.name = traffic.function \
           AND f.active_number = traffic.stable)",
    )
    .bind(name.as_str())
    .bind(rows::time(since))
    .bind(rows::json("end of a split", why)?)
    .execute(&mut **tx)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Deletes the split or the record of an aborted one. Returns the stable version of a running one.
pub(super) async fn end(
    tx: &mut Tx,
    name: &FunctionName,
) -> Result<Option<VersionNumber>, StoreError> {
    let held = running(&mut **tx, name).await?.map(|running| running.stable);
    sqlx::query("DELETE FROM traffic WHERE function = $1")
        .bind(name.as_str())
        .execute(&mut **tx)
        .await?;
    Ok(held)
}
