//! Webhook deliveries that started a deployment.

use super::{Tx, rows};
use crate::{Delivery, StoreError};
use epsilon_api::ids::{DeploymentId, GatewayId};
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// Stored deliveries per project at most: a push a minute for a week.
const MAX_DELIVERIES: i64 = 10_000;

/// Stores a delivery with its deployment. Returns the earlier deployment if the delivery is known.
pub(super) async fn begin(
    tx: &mut Tx,
    delivery: &Delivery,
    gateway: &GatewayId,
    keep: Duration,
) -> Result<Option<DeploymentId>, StoreError> {
    let Delivery { project, id, digest, deployment, source, seen_at } = delivery;
    forget(tx, delivery, keep).await?;
    let noted = sqlx::query(
        "INSERT INTO hook_deliveries (project, id, digest, deployment, seen_at) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
    )
    .bind(project.as_str())
    .bind(id)
    .bind(digest)
    .bind(deployment.as_str())
    .bind(rows::time(*seen_at))
    .execute(&mut **tx)
    .await?;
    if noted.rows_affected() == 0 {
        let earlier: String = sqlx::query_scalar(
            "SELECT deployment FROM hook_deliveries \
             WHERE project = $1 AND (id = $2 OR digest = $3) ORDER BY seen_at DESC LIMIT 1",
        )
        .bind(project.as_str())
        .bind(id)
        .bind(digest)
        .fetch_one(&mut **tx)
        .await?;
        return rows::parse("deployment id", &earlier).map(Some);
    }
    super::deployments::begin(&mut **tx, deployment, gateway, *seen_at).await?;
    sqlx::query("UPDATE deployments SET source = $2 WHERE id = $1")
        .bind(deployment.as_str())
        .bind(source)
        .execute(&mut **tx)
        .await?;
    Ok(None)
}

/// Deletes what is too old or too much, and this delivery if its deployment has failed: then it may
/// be delivered again.
async fn forget(tx: &mut Tx, delivery: &Delivery, keep: Duration) -> Result<(), StoreError> {
    let keep = SignedDuration::try_from(keep).unwrap_or(SignedDuration::MAX);
    let before = delivery.seen_at.checked_sub(keep).unwrap_or(Timestamp::MIN);
    let project = delivery.project.as_str();
    sqlx::query("DELETE FROM hook_deliveries WHERE seen_at < $1")
        .bind(rows::time(before))
        .execute(&mut **tx)
        .await?;
    sqlx::query(
        "DELETE FROM hook_deliveries WHERE project = $1 AND seen_at < \
          (SELECT seen_at FROM hook_deliveries WHERE project = $1 \
           ORDER BY seen_at DESC LIMIT 1 OFFSET $2)",
    )
    .bind(project)
    .bind(MAX_DELIVERIES - 1)
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        "DELETE FROM hook_deliveries WHERE project = $1 AND (id = $2 OR digest = $3) \
          AND deployment IN (SELECT deployments.id FROM deployments WHERE state = 'failed')",
    )
    .bind(project)
    .bind(&delivery.id)
    .bind(&delivery.digest)
    .execute(&mut **tx)
    .await?;
    Ok(())
}
