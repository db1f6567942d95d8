//! Gateways of the fleet, and leases for roles that only one may have.

use super::{Tx, rows};
use crate::{Gateway, StoreError};
use epsilon_api::ids::GatewayId;
use jiff::{SignedDuration, Timestamp};
use sqlx::AnyExecutor;
use std::time::Duration;

/// A gateway silent for this long is removed; members no longer accept its tokens.
const REMOVE_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);

/// Records a heartbeat; `false` when the gateway is new or has changed.
pub(super) async fn heartbeat(
    on: impl AnyExecutor<'_>,
    gateway: &Gateway,
) -> Result<bool, StoreError> {
    let Gateway { id, public_key, control_url, seen_at } = gateway;
    let same = sqlx::query(
        "UPDATE gateways SET seen_at = $4 \
         WHERE id = $1 AND public_key = $2 AND control_url = $3",
    )
    .bind(id.as_str())
    .bind(public_key)
    .bind(control_url)
    .bind(rows::time(*seen_at))
    .execute(on)
    .await?;
    Ok(same.rows_affected() > 0)
}

/// Inserts a new or changed gateway, and deletes those that are gone for good.
pub(super) async fn upsert(tx: &mut Tx, gateway: &Gateway) -> Result<(), StoreError> {
    let Gateway { id, public_key, control_url, seen_at } = gateway;
    sqlx::query(
        "INSERT INTO gateways (id, public_key, control_url, seen_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (id) DO UPDATE SET public_key = excluded.public_key, \
         control_url = excluded.control_url, seen_at = excluded.seen_at",
    )
    .bind(id.as_str())
    .bind(public_key)
    .bind(control_url)
    .bind(rows::time(*seen_at))
    .execute(&mut **tx)
    .await?;
    let forgotten = shifted(*seen_at, -SignedDuration::try_from(REMOVE_AFTER).unwrap_or_default());
    sqlx::query("DELETE FROM gateways WHERE seen_at < $1")
        .bind(rows::time(forgotten))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Removes a gateway that has been silent since `silent_before`. Returns whether it did.
pub(super) async fn forget(
    tx: &mut Tx,
    id: &GatewayId,
    silent_before: Timestamp,
) -> Result<bool, StoreError> {
    let forgotten = sqlx::query("DELETE FROM gateways WHERE id = $1 AND seen_at < $2")
        .bind(id.as_str())
        .bind(rows::time(silent_before))
        .execute(&mut **tx)
        .await?;
    Ok(forgotten.rows_affected() > 0)
}

pub(super) async fn list(on: impl AnyExecutor<'_>) -> Result<Vec<Gateway>, StoreError> {
    let found: Vec<(String, String, String, String)> =
        sqlx::query_as("SELECT id, public_key, control_url, seen_at FROM gateways ORDER BY id")
            .fetch_all(on)
            .await?;
    found
        .into_iter()
        .map(|(id, public_key, control_url, seen_at)| {
            Ok(Gateway {
                id: rows::parse("gateway id", &id)?,
                public_key,
                control_url,
                seen_at: rows::parse("time", &seen_at)?,
            })
        })
        .collect()
}

/// One statement, so of two gateways that ask at once the second one sees what the first one wrote.
pub(super) async fn lead(
    on: impl AnyExecutor<'_>,
    gateway: &GatewayId,
    role: &str,
    lease: Duration,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let lease = SignedDuration::try_from(lease).unwrap_or(SignedDuration::MAX);
    let ends_at = shifted(now, lease);
    let taken = sqlx::query(
        "INSERT INTO leaders (role, gateway, ends_at) VALUES ($1, $2, $3) \
         ON CONFLICT (role) DO UPDATE SET gateway = excluded.gateway, ends_at = excluded.ends_at \
         WHERE leaders.gateway = $2 OR leaders.ends_at <= $4 OR leaders.ends_at > $5",
    )
    .bind(role)
    .bind(gateway.as_str())
    .bind(rows::time(ends_at))
    .bind(rows::time(now))
    // Clocks may differ by the length of a lease; a lease that ends even later was given by a clock
    // that had jumped.
    .bind(rows::time(shifted(ends_at, lease)))
    .execute(on)
    .await?;
    Ok(taken.rows_affected() > 0)
}

fn shifted(at: Timestamp, by: SignedDuration) -> Timestamp {
    let end = if by.is_negative() { Timestamp::MIN } else { Timestamp::MAX };
    at.checked_add(by).unwrap_or(end)
}
