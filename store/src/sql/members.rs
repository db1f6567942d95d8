//! Members of the fleet: who joined, the last heartbeat of each, and which VMs drain.

use super::{Tx, keys, rows};
use crate::{Key, Member, StoreError};
use epsilon_api::{
    fleet::{Join, MemberKind},
    ids::VmId,
    units::{Bytes, MilliCores},
};
use jiff::Timestamp;
use sqlx::AnyExecutor;

const fn kind_text(kind: MemberKind) -> &'static str {
    match kind {
        MemberKind::Vm => "vm",
        MemberKind::Builder => "builder",
    }
}

pub(super) async fn join(tx: &mut Tx, member: &Member, key: &Key) -> Result<(), StoreError> {
    let Member { join, joined_at, seen_at } = member;
    sqlx::query(
        "INSERT INTO members \
         (id, kind, protocol, address, tls, memory_bytes, millicores, joined_at, seen_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
         ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, protocol = excluded.protocol, \
         address = excluded.address, tls = excluded.tls, memory_bytes = excluded.memory_bytes, \
         millicores = excluded.millicores, joined_at = excluded.joined_at, \
         seen_at = excluded.seen_at",
    )
    .bind(join.id.as_str())
    .bind(kind_text(join.kind))
    .bind(i64::from(join.protocol))
    .bind(&join.address)
    .bind(i64::from(join.tls))
    .bind(rows::signed(join.memory_bytes.get()))
    .bind(rows::signed(join.cpu.0.into()))
    .bind(rows::time(*joined_at))
    .bind(rows::time(*seen_at))
    .execute(&mut **tx)
    .await?;
    keys::forget_member(tx, &join.id).await?;
    keys::add(tx, None, key).await
}

pub(super) async fn heartbeat(
    on: impl AnyExecutor<'_>,
    id: &VmId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let noted = sqlx::query("UPDATE members SET seen_at = $2 WHERE id = $1")
        .bind(id.as_str())
        .bind(rows::time(now))
        .execute(on)
        .await?;
    match noted.rows_affected() {
        0 => Err(StoreError::MemberNotFound(id.clone())),
        _ => Ok(()),
    }
}

pub(super) async fn leave(tx: &mut Tx, id: &VmId) -> Result<(), StoreError> {
    keys::forget_member(tx, id).await?;
    sqlx::query("DELETE FROM members WHERE id = $1").bind(id.as_str()).execute(&mut **tx).await?;
    Ok(())
}

/// id, kind, protocol, address, tls, memory_bytes, millicores, joined_at, seen_at.
type MemberRow = (String, String, i64, String, i64, i64, i64, String, String);

pub(super) async fn list(on: impl AnyExecutor<'_>) -> Result<Vec<Member>, StoreError> {
    let found: Vec<MemberRow> = sqlx::query_as(
        "SELECT id, kind, protocol, address, tls, memory_bytes, millicores, joined_at, seen_at \
         FROM members ORDER BY id",
    )
    .fetch_all(on)
    .await?;
    found.into_iter().map(member).collect()
}

fn member(row: MemberRow) -> Result<Member, StoreError> {
    let (id, kind, protocol, address, tls, memory_bytes, millicores, joined_at, seen_at) = row;
    let kind = [MemberKind::Vm, MemberKind::Builder]
        .into_iter()
        .find(|known| kind_text(*known) == kind)
        .ok_or_else(|| StoreError::Corrupt { what: "member's kind", source: kind.into() })?;
    let join = Join {
        protocol: rows::unsigned("member's protocol", protocol)?,
        kind,
        id: rows::parse("VM id", &id)?,
        address,
        tls: tls != 0,
        memory_bytes: Bytes(rows::unsigned("member's memory", memory_bytes)?),
        cpu: MilliCores(rows::unsigned("member's CPUs", millicores)?),
    };
    let joined_at = rows::parse("time", &joined_at)?;
    let seen_at = rows::parse("time", &seen_at)?;
    Ok(Member { join, joined_at, seen_at })
}

pub(super) async fn set_draining(tx: &mut Tx, id: &VmId, draining: bool) -> Result<(), StoreError> {
    let statement = if draining {
        "INSERT INTO draining_vms (id) VALUES ($1) ON CONFLICT (id) DO NOTHING"
    } else {
        "DELETE FROM draining_vms WHERE id = $1"
    };
    sqlx::query(statement).bind(id.as_str()).execute(&mut **tx).await?;
    Ok(())
}

pub(super) async fn draining(on: impl AnyExecutor<'_>) -> Result<Vec<VmId>, StoreError> {
    let ids: Vec<String> =
        sqlx::query_scalar("SELECT id FROM draining_vms ORDER BY id").fetch_all(on).await?;
    ids.iter().map(|id| rows::parse("VM id", id)).collect()
}
