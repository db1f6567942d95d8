//! Functions and their versions: which one serves, and which ones served before.

use super::{Tx, rows};
use crate::{Page, Paged, StoreError, StoredVersion};
use epsilon_api::{
    function::Version,
    ids::{FunctionName, VersionNumber},
};
use sqlx::{Any, AnyExecutor, AssertSqlSafe};

/// Selects active versions; the tail of the statement filters.
macro_rules! select_active {
    ($tail:literal) => {
        concat!(
            "SELECT v.function, v.number, v.project, v.deployment, v.image, v.digest, v.spec, \
             v.created_at, v.parts FROM functions f \
             JOIN versions v ON v.function = f.name AND v.number = f.active_number ",
            $tail
        )
    };
}

pub(super) async fn snapshot(on: impl AnyExecutor<'_>) -> Result<Vec<Version>, StoreError> {
    let found: Vec<rows::VersionRow> =
        sqlx::query_as(select_active!("ORDER BY f.name")).fetch_all(on).await?;
    found.into_iter().map(rows::version).collect()
}

/// The active version, if there is one.
pub(super) async fn active(
    on: impl AnyExecutor<'_>,
    name: &FunctionName,
) -> Result<Option<Version>, StoreError> {
    sqlx::query_as::<Any, rows::VersionRow>(select_active!("WHERE f.name = $1"))
        .bind(name.as_str())
        .fetch_optional(on)
        .await?
        .map(rows::version)
        .transpose()
}

pub(super) async fn require_active(
    tx: &mut Tx,
    name: &FunctionName,
) -> Result<Version, StoreError> {
    active(&mut **tx, name).await?.ok_or_else(|| StoreError::FunctionNotFound(name.clone()))
}

pub(super) async fn list(
    on: impl AnyExecutor<'_>,
    page: &Page,
) -> Result<Paged<Version>, StoreError> {
    let found: Vec<rows::VersionRow> =
        sqlx::query_as(select_active!("WHERE f.name > $1 ORDER BY f.name LIMIT $2"))
            .bind(page.cursor.as_deref().unwrap_or_default())
            .bind(page.limit_plus_one())
            .fetch_all(on)
            .await?;
    page.cut(found, |row| row.0.clone()).try_map(rows::version)
}

pub(super) async fn versions(
    tx: &mut Tx,
    name: &FunctionName,
    page: &Page,
) -> Result<Paged<StoredVersion>, StoreError> {
    let active = require_active(tx, name).await?.number;
    let before = page.number_cursor(i64::MAX)?;
    let found: Vec<rows::VersionRow> = sqlx::query_as(
        "SELECT function, number, project, deployment, image, digest, spec, created_at, parts \
         FROM versions WHERE function = $1 AND activated_at IS NOT NULL AND number < $2 \
         ORDER BY number DESC LIMIT $3",
    )
    .bind(name.as_str())
    .bind(before)
    .bind(page.limit_plus_one())
    .fetch_all(&mut **tx)
    .await?;
    page.cut(found, |row| row.1.to_string()).try_map(|row| {
        let version = rows::version(row)?;
        Ok(StoredVersion { active: version.number == active, version })
    })
}

/// Whether any of these functions serves.
pub(super) async fn is_any_active(
    on: impl AnyExecutor<'_>,
    names: &[FunctionName],
) -> Result<bool, StoreError> {
    let places: Vec<_> = (1..=names.len()).map(|n| format!("${n}")).collect();
    let statement = format!(
        "SELECT COUNT(*) FROM functions WHERE active_number IS NOT NULL AND name IN ({})",
        places.join(", ")
    );
    let mut count = sqlx::query_scalar::<Any, i64>(AssertSqlSafe(statement)).persistent(false);
    for name in names {
        count = count.bind(name.as_str().to_owned());
    }
    Ok(count.fetch_one(on).await? > 0)
}

/// A version that serves or has served.
pub(super) async fn version(
    tx: &mut Tx,
    name: &FunctionName,
    number: VersionNumber,
) -> Result<Version, StoreError> {
    let row: Option<rows::VersionRow> = sqlx::query_as(
        "SELECT function, number, project, deployment, image, digest, spec, created_at, parts \
         FROM versions WHERE function = $1 AND number = $2 AND activated_at IS NOT NULL",
    )
    .bind(name.as_str())
    .bind(i64::from(number.get()))
    .fetch_optional(&mut **tx)
    .await?;
    match row {
        Some(row) => rows::version(row),
        None => Err(missing(tx, name, number).await?),
    }
}

/// The error for a missing version: removed, or never existed.
async fn missing(
    tx: &mut Tx,
    name: &FunctionName,
    number: VersionNumber,
) -> Result<StoreError, StoreError> {
    let oldest: Option<i64> = sqlx::query_scalar(
        "SELECT MIN(number) FROM versions WHERE function = $1 AND activated_at IS NOT NULL",
    )
    .bind(name.as_str())
    .fetch_one(&mut **tx)
    .await?;
    let function = name.clone();
    Ok(match oldest.map(rows::number).transpose()? {
        Some(oldest) if number < oldest => StoreError::VersionRemoved { function, number, oldest },
        Some(_) | None => StoreError::VersionNotFound { function, number },
    })
}

/// Makes an existing version the active one.
pub(super) async fn set_active(
    tx: &mut Tx,
    name: &FunctionName,
    number: VersionNumber,
) -> Result<Version, StoreError> {
    sqlx::query("UPDATE functions SET active_number = $2 WHERE name = $1")
        .bind(name.as_str())
        .bind(i64::from(number.get()))
        .execute(&mut **tx)
        .await?;
    require_active(tx, name).await
}
