//! Keys: their hashes and roles, never their secrets.

use super::{Tx, rows};
use crate::{Key, KeyRole, StoreError};
use epsilon_api::ids::{GatewayId, VmId};
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

pub(super) async fn replace(tx: &mut Tx, gateway: &GatewayId, key: &Key) -> Result<(), StoreError> {
    match &key.role {
        KeyRole::Member(id) => forget_member(tx, id).await?,
        KeyRole::Admin | KeyRole::Fleet | KeyRole::Builder => {
            // Keys without a gateway are from releases with only one gateway.
            sqlx::query("DELETE FROM keys WHERE role = $1 AND (gateway = $2 OR gateway IS NULL)")
                .bind(columns(&key.role).0)
                .bind(gateway.as_str())
                .execute(&mut **tx)
                .await?;
        }
    }
    add(tx, Some(gateway), key).await
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

pub(super) async fn get(on: impl AnyExecutor<'_>, id: &str) -> Result<Option<Key>, StoreError> {
    let row: Option<(String, String, Option<String>, String, String)> =
        sqlx::query_as("SELECT id, role, member, hash, created_at FROM keys WHERE id = $1")
            .bind(id)
            .fetch_optional(on)
            .await?;
    let Some((id, role, member, hash, created_at)) = row else { return Ok(None) };
    let role = match (role.as_str(), &member) {
        ("admin", None) => KeyRole::Admin,
        ("fleet", None) => KeyRole::Fleet,
        ("builder", None) => KeyRole::Builder,
        ("member", Some(member)) => KeyRole::Member(rows::parse("VM id", member)?),
        _ => return Err(StoreError::Corrupt { what: "key's role", source: role.into() }),
    };
    Ok(Some(Key { id, role, hash, created_at: rows::parse("time", &created_at)? }))
}
