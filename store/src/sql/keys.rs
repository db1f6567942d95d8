//! Keys: the hash by which one is recognised, and the gateway that has it.

use super::{Tx, rows};
use crate::{Key, KeyRole, OwnedKey, Page, Paged, StoreError};
use epsilon_api::ids::{GatewayId, VmId};
use jiff::Timestamp;
use sqlx::AnyExecutor;

/// Role and member in their columns.
fn columns(role: &KeyRole) -> (&'static str, Option<&str>) {
    match role {
        KeyRole::Admin => ("admin", None),
        KeyRole::Fleet => ("fleet", None),
        KeyRole::Builder => ("builder", None),
        KeyRole::Member(id) => ("member", Some(id.as_str())),
    }
}

/// Returns whether the key was not known before.
pub(super) async fn replace(
    tx: &mut Tx,
    gateway: &GatewayId,
    key: &Key,
    silent_before: Timestamp,
) -> Result<bool, StoreError> {
    match &key.role {
        KeyRole::Member(id) => forget_member(tx, id).await?,
        KeyRole::Admin | KeyRole::Fleet | KeyRole::Builder => {
            // Rows without a gateway are of the first release, which had one gateway only.
            sqlx::query(
                "DELETE FROM keys \
                 WHERE role = $1 AND (gateway = $2 OR gateway IS NULL) AND id <> $3",
            )
            .bind(columns(&key.role).0)
            .bind(gateway.as_str())
            .bind(&key.id)
            .execute(&mut **tx)
            .await?;
        }
    }
    let known = get(&mut **tx, &key.id).await?;
    if known.is_some_and(|known| known.role == key.role && known.hash == key.hash) {
        adopt(&mut **tx, gateway, key, silent_before).await?;
        return Ok(false);
    }
    add(tx, Some(gateway), key).await?;
    Ok(true)
}

/// Assigns a key to this gateway if it has no owner, or one silent since `silent_before`. Returns
/// whether it did.
pub(super) async fn adopt(
    on: impl AnyExecutor<'_>,
    gateway: &GatewayId,
    key: &Key,
    silent_before: Timestamp,
) -> Result<bool, StoreError> {
    let adopted = sqlx::query(
        "UPDATE keys SET gateway = $1 WHERE id = $2 AND role = $3 AND hash = $4 \
         AND (gateway IS NULL OR (gateway <> $1 AND NOT EXISTS (SELECT 1 FROM gateways \
          WHERE gateways.id = keys.gateway AND gateways.seen_at >= $5)))",
    )
    .bind(gateway.as_str())
    .bind(&key.id)
    .bind(columns(&key.role).0)
    .bind(&key.hash)
    .bind(rows::time(silent_before))
    .execute(on)
    .await?;
    Ok(adopted.rows_affected() > 0)
}

pub(super) async fn add(
    tx: &mut Tx,
    gateway: Option<&GatewayId>,
    key: &Key,
) -> Result<(), StoreError> {
    let (role, member) = columns(&key.role);
    sqlx::query(
        "INSERT INTO keys (id, role, hash, created_at, gateway, member) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(&key.id)
    .bind(role)
    .bind(&key.hash)
    .bind(rows::time(key.created_at))
    .bind(gateway.map(GatewayId::as_str))
    .bind(member)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

pub(super) async fn forget_member(tx: &mut Tx, id: &VmId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM keys WHERE member = $1").bind(id.as_str()).execute(&mut **tx).await?;
    Ok(())
}

/// id, role, member, hash, created_at.
type KeyRow = (String, String, Option<String>, String, String);

pub(super) async fn get(on: impl AnyExecutor<'_>, id: &str) -> Result<Option<Key>, StoreError> {
    let row: Option<KeyRow> =
        sqlx::query_as("SELECT id, role, member, hash, created_at FROM keys WHERE id = $1")
            .bind(id)
            .fetch_optional(on)
            .await?;
    row.map(key).transpose()
}

fn key((id, role, member, hash, created_at): KeyRow) -> Result<Key, StoreError> {
    let role = match (role.as_str(), &member) {
        ("admin", None) => KeyRole::Admin,
        ("fleet", None) => KeyRole::Fleet,
        ("builder", None) => KeyRole::Builder,
        ("member", Some(member)) => KeyRole::Member(rows::parse("VM id", member)?),
        _ => return Err(StoreError::Corrupt { what: "key's role", source: role.into() }),
    };
    Ok(Key { id, role, hash, created_at: rows::parse("time", &created_at)? })
}

/// Keys of gateways with their owners; the tail of the statement picks which.
macro_rules! select_owned {
    ($tail:literal) => {
        concat!(
            "SELECT k.id, k.role, k.hash, k.created_at, k.gateway, g.seen_at \
             FROM keys k LEFT JOIN gateways g ON g.id = k.gateway WHERE k.member IS NULL ",
            $tail
        )
    };
}

/// id, role, hash, created_at, gateway, seen_at.
type OwnedRow = (String, String, String, String, Option<String>, Option<String>);

fn owned(row: OwnedRow) -> Result<OwnedKey, StoreError> {
    let (id, role, hash, created_at, owner, seen_at) = row;
    Ok(OwnedKey {
        key: key((id, role, None, hash, created_at))?,
        owner: owner.map(|id| rows::parse("gateway id", &id)).transpose()?,
        owner_seen_at: seen_at.map(|at| rows::parse("time", &at)).transpose()?,
    })
}

pub(super) async fn list(
    on: impl AnyExecutor<'_>,
    page: &Page,
) -> Result<Paged<OwnedKey>, StoreError> {
    let found: Vec<OwnedRow> =
        sqlx::query_as(select_owned!("AND k.id > $1 ORDER BY k.id LIMIT $2"))
            .bind(page.cursor.as_deref().unwrap_or_default())
            .bind(page.limit_plus_one())
            .fetch_all(on)
            .await?;
    page.cut(found, |row| row.0.clone()).try_map(owned)
}

/// See [`crate::Store::remove_key`].
pub(super) async fn remove(
    tx: &mut Tx,
    id: &str,
    silent_before: Option<Timestamp>,
) -> Result<OwnedKey, StoreError> {
    let found: Option<OwnedRow> =
        sqlx::query_as(select_owned!("AND k.id = $1")).bind(id).fetch_optional(&mut **tx).await?;
    let known =
        found.map(owned).transpose()?.ok_or_else(|| StoreError::KeyNotFound(id.to_owned()))?;
    if let (Some(before), Some(gateway)) = (silent_before, &known.owner)
        && known.last_seen_at() >= before
    {
        return Err(StoreError::KeyInUse { id: id.to_owned(), gateway: gateway.clone() });
    }
    sqlx::query("DELETE FROM keys WHERE id = $1").bind(id).execute(&mut **tx).await?;
    Ok(known)
}
