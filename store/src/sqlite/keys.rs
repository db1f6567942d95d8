//! Keys: only what is needed to recognise one.

use super::{Tx, rows};
use crate::{Key, KeyRole, StoreError};
use sqlx::SqliteExecutor;

const fn role_text(role: KeyRole) -> &'static str {
    match role {
        KeyRole::Admin => "admin",
        KeyRole::Fleet => "fleet",
    }
}

pub(super) async fn replace(tx: &mut Tx, key: &Key) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM keys WHERE role = $1")
        .bind(role_text(key.role))
        .execute(&mut **tx)
        .await?;
    sqlx::query("INSERT INTO keys (id, role, hash, created_at) VALUES ($1, $2, $3, $4)")
        .bind(&key.id)
        .bind(role_text(key.role))
        .bind(&key.hash)
        .bind(rows::time(key.created_at))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

pub(super) async fn get(on: impl SqliteExecutor<'_>, id: &str) -> Result<Option<Key>, StoreError> {
    let row: Option<(String, String, String, String)> =
        sqlx::query_as("SELECT id, role, hash, created_at FROM keys WHERE id = $1")
            .bind(id)
            .fetch_optional(on)
            .await?;
    let Some((id, role, hash, created_at)) = row else { return Ok(None) };
    let role = [KeyRole::Admin, KeyRole::Fleet]
        .into_iter()
        .find(|known| role_text(*known) == role)
        .ok_or_else(|| StoreError::Corrupt { what: "key's role", source: role.into() })?;
    Ok(Some(Key { id, role, hash, created_at: rows::parse("time", &created_at)? }))
}
