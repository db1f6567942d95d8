//! Changes of what serves, whatever the function's split says: rollback and deletion. Both end the
//! split.

use super::{Tx, functions, images, rows, traffic};
use crate::StoreError;
use epsilon_api::{
    function::Version,
    ids::{FunctionName, VersionNumber},
};
use jiff::Timestamp;

pub(super) async fn rollback(
    tx: &mut Tx,
    name: &FunctionName,
    to: Option<VersionNumber>,
) -> Result<Version, StoreError> {
    let from = functions::require_active(tx, name).await?.number;
    let split = traffic::end(tx, name).await?;
    let target = match (to, split) {
        (Some(number), _) => functions::version(tx, name, number).await?.number,
        // Rolls back from the candidate of a split only, not also from the stable version.
        (None, Some(stable)) => stable,
        (None, None) => {
            let older: Option<i64> = sqlx::query_scalar(
                "SELECT number FROM versions \
                 WHERE function = $1 AND activated_at IS NOT NULL AND number < $2 \
                 ORDER BY number DESC LIMIT 1",
            )
            .bind(name.as_str())
            .bind(i64::from(from.get()))
            .fetch_optional(&mut **tx)
            .await?;
            let none = || StoreError::NoOlderVersion { function: name.clone() };
            rows::number(older.ok_or_else(none)?)?
        }
    };
    functions::set_active(tx, name, target).await
}

pub(super) async fn delete(
    tx: &mut Tx,
    name: &FunctionName,
    now: Timestamp,
) -> Result<Version, StoreError> {
    let active = functions::require_active(tx, name).await?;
    traffic::end(tx, name).await?;
    // The row of the function stays: it holds the numbers already used.
    sqlx::query("UPDATE functions SET project = NULL, active_number = NULL WHERE name = $1")
        .bind(name.as_str())
        .execute(&mut **tx)
        .await?;
    images::remove_all(tx, name, now).await?;
    Ok(active)
}
