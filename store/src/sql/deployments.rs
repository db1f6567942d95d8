//! Deployments: begun, prepared, then activated or failed.

use super::{Tx, rows};
use crate::{Deployed, Deployment, Page, Paged, Prepared, StoreError};
use epsilon_api::{
    admin::DeploymentState,
    build::{Built, BuiltFunction},
    error::ErrorBody,
    function::Version,
    ids::{DeploymentId, FunctionName, GatewayId, ProjectName},
};
use jiff::Timestamp;
use sqlx::{Any, AnyExecutor};

/// Does nothing if the deployment exists.
pub(super) async fn begin(
    on: impl AnyExecutor<'_>,
    id: &DeploymentId,
    gateway: &GatewayId,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO deployments (id, gateway, state, created_at, plan) \
         VALUES ($1, $2, 'running', $3, '[]') ON CONFLICT (id) DO NOTHING",
    )
    .bind(id.as_str())
    .bind(gateway.as_str())
    .bind(rows::time(now))
    .execute(on)
    .await?;
    Ok(())
}

pub(super) async fn prepare(
    tx: &mut Tx,
    id: &DeploymentId,
    built: &Built,
    now: Timestamp,
) -> Result<Vec<Prepared>, StoreError> {
    let (seq, _) = running(tx, id).await?;
    let mut prepared = Vec::with_capacity(built.functions.len());
    for function in &built.functions {
        check_owner(tx, &function.name, &built.project).await?;
        let one = prepare_one(tx, id, &built.project, function, now).await?;
        if one.changed {
            super::images::need(tx, seq, function).await?;
        }
        prepared.push(one);
    }
    let plan: Vec<Deployed> = prepared
        .iter()
        .map(|one| Deployed {
            name: one.version.function.clone(),
            version: one.version.number,
            changed: one.changed,
        })
        .collect();
    sqlx::query("UPDATE deployments SET project = $2 WHERE id = $1")
        .bind(id.as_str())
        .bind(built.project.as_str())
        .execute(&mut **tx)
        .await?;
    note_plan(tx, id, &plan).await?;
    Ok(prepared)
}

async fn note_plan(tx: &mut Tx, id: &DeploymentId, plan: &[Deployed]) -> Result<(), StoreError> {
    sqlx::query("UPDATE deployments SET plan = $2 WHERE id = $1")
        .bind(id.as_str())
        .bind(rows::plan_text(plan)?)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn prepare_one(
    tx: &mut Tx,
    id: &DeploymentId,
    project: &ProjectName,
    function: &BuiltFunction,
    now: Timestamp,
) -> Result<Prepared, StoreError> {
    if let Some(active) = super::functions::active(&mut **tx, &function.name).await?
        && active.image.digest == function.image.digest
        && active.spec == function.spec
    {
        return Ok(Prepared { version: with_parts(tx, active, function).await?, changed: false });
    }
    let number: i64 = sqlx::query_scalar(
        "INSERT INTO functions (name, last_number) VALUES ($1, 1) \
         ON CONFLICT (name) DO UPDATE SET last_number = functions.last_number + 1 \
         RETURNING last_number",
    )
    .bind(function.name.as_str())
    .fetch_one(&mut **tx)
    .await?;
    let version = Version {
        function: function.name.clone(),
        number: rows::number(number)?,
        project: project.clone(),
        deployment: id.clone(),
        image: function.image.clone(),
        parts: function.parts.clone(),
        spec: function.spec.clone(),
        created_at: now,
    };
    sqlx::query(
        "INSERT INTO versions \
         (function, number, project, deployment, image, digest, spec, created_at, parts) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(version.function.as_str())
    .bind(number)
    .bind(version.project.as_str())
    .bind(id.as_str())
    .bind(&version.image.reference)
    .bind(&version.image.digest)
    .bind(rows::json("function's settings", &version.spec)?)
    .bind(rows::time(now))
    .bind(rows::parts_text(version.parts.as_ref())?)
    .execute(&mut **tx)
    .await?;
    Ok(Prepared { version, changed: true })
}

/// A version from before parts were stored gets them from a build of the same image in the same
/// place. They do not change its content, so it stays the same version.
async fn with_parts(
    tx: &mut Tx,
    version: Version,
    built: &BuiltFunction,
) -> Result<Version, StoreError> {
    if version.parts.is_some() || built.parts.is_none() || version.image != built.image {
        return Ok(version);
    }
    sqlx::query("UPDATE versions SET parts = $3 WHERE function = $1 AND number = $2")
        .bind(version.function.as_str())
        .bind(i64::from(version.number.get()))
        .bind(rows::parts_text(built.parts.as_ref())?)
        .execute(&mut **tx)
        .await?;
    Ok(Version { parts: built.parts.clone(), ..version })
}

pub(super) async fn activate(
    tx: &mut Tx,
    id: &DeploymentId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (seq, plan) = running(tx, id).await?;
    let mut plan = rows::plan(&plan)?;
    for Deployed { name, version, changed } in &mut plan {
        if *changed {
            check_not_superseded(tx, seq, name).await?;
            super::traffic::end(tx, name).await?;
        }
        let project: Option<String> = sqlx::query_scalar(
            "UPDATE versions SET activated_at = COALESCE(activated_at, $3) \
             WHERE function = $1 AND number = $2 RETURNING project",
        )
        .bind(name.as_str())
        .bind(i64::from(version.get()))
        .bind(rows::time(now))
        .fetch_optional(&mut **tx)
        .await?;
        let Some(project) = project else { return Err(StoreError::DeletedMeanwhile(name.clone())) };
        check_owner(tx, name, &rows::parse("project name", &project)?).await?;
        if !*changed {
            // It may have been rolled back, promoted or split since the deployment was prepared.
            *version = super::functions::require_active(tx, name).await?.number;
            continue;
        }
        sqlx::query("UPDATE functions SET project = $2, active_number = $3 WHERE name = $1")
            .bind(name.as_str())
            .bind(project)
            .bind(i64::from(version.get()))
            .execute(&mut **tx)
            .await?;
    }
    note_plan(tx, id, &plan).await?;
    end(tx, id, DeploymentState::Done, None, now).await
}

pub(super) async fn fail(
    tx: &mut Tx,
    id: &DeploymentId,
    error: &ErrorBody,
    now: Timestamp,
) -> Result<(), StoreError> {
    running(tx, id).await?;
    super::images::remove_prepared(tx, id, now).await?;
    end(tx, id, DeploymentState::Failed, Some(error), now).await
}

async fn end(
    tx: &mut Tx,
    id: &DeploymentId,
    state: DeploymentState,
    error: Option<&ErrorBody>,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE deployments SET state = $2, error = $3, ended_at = $4 WHERE id = $1")
        .bind(id.as_str())
        .bind(state.to_string())
        .bind(error.map(|error| rows::json("deployment's error", error)).transpose()?)
        .bind(rows::time(now))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Order and plan of a running deployment.
async fn running(tx: &mut Tx, id: &DeploymentId) -> Result<(i64, String), StoreError> {
    let row: Option<(i64, String, String)> =
        sqlx::query_as("SELECT seq, state, plan FROM deployments WHERE id = $1")
            .bind(id.as_str())
            .fetch_optional(&mut **tx)
            .await?;
    match row {
        None => Err(StoreError::DeploymentNotFound(id.clone())),
        Some((seq, state, plan)) if state == "running" => Ok((seq, plan)),
        Some(_) => Err(StoreError::DeploymentEnded(id.clone())),
    }
}

async fn check_owner(
    tx: &mut Tx,
    function: &FunctionName,
    project: &ProjectName,
) -> Result<(), StoreError> {
    let owner: Option<Option<String>> =
        sqlx::query_scalar("SELECT project FROM functions WHERE name = $1")
            .bind(function.as_str())
            .fetch_optional(&mut **tx)
            .await?;
    match owner.flatten() {
        Some(owner) if owner != project.as_str() => Err(StoreError::OwnedByOther {
            function: function.clone(),
            owner: rows::parse("project name", &owner)?,
        }),
        Some(_) | None => Ok(()),
    }
}

async fn check_not_superseded(
    tx: &mut Tx,
    seq: i64,
    function: &FunctionName,
) -> Result<(), StoreError> {
    let later: Option<String> = sqlx::query_scalar(
        "SELECT deployments.id FROM functions \
         JOIN versions ON versions.function = functions.name \
          AND versions.number = functions.active_number \
         JOIN deployments ON deployments.id = versions.deployment \
         WHERE functions.name = $1 AND deployments.seq > $2",
    )
    .bind(function.as_str())
    .bind(seq)
    .fetch_optional(&mut **tx)
    .await?;
    match later {
        Some(by) => Err(StoreError::Superseded {
            function: function.clone(),
            by: rows::parse("deployment id", &by)?,
        }),
        None => Ok(()),
    }
}

/// Running deployments of this gateway, and of those without a heartbeat since `dead_before`.
pub(super) async fn unfinished(
    on: impl AnyExecutor<'_>,
    gateway: &GatewayId,
    dead_before: Timestamp,
) -> Result<Vec<DeploymentId>, StoreError> {
    let ids: Vec<String> = sqlx::query_scalar(
        "SELECT id FROM deployments WHERE state = 'running' AND (gateway IS NULL \
          OR gateway = $1 \
          OR gateway NOT IN (SELECT gateways.id FROM gateways WHERE gateways.seen_at >= $2)) \
         ORDER BY seq",
    )
    .bind(gateway.as_str())
    .bind(rows::time(dead_before))
    .fetch_all(on)
    .await?;
    ids.iter().map(|id| rows::parse("deployment id", id)).collect()
}

pub(super) async fn get(
    on: impl AnyExecutor<'_>,
    id: &DeploymentId,
) -> Result<Deployment, StoreError> {
    let row = sqlx::query_as::<Any, rows::DeploymentRow>(
        "SELECT seq, id, project, state, created_at, ended_at, error, plan, source \
         FROM deployments WHERE id = $1",
    )
    .bind(id.as_str())
    .fetch_optional(on)
    .await?;
    rows::deployment(row.ok_or_else(|| StoreError::DeploymentNotFound(id.clone()))?)
}

pub(super) async fn list(
    on: impl AnyExecutor<'_>,
    page: &Page,
) -> Result<Paged<Deployment>, StoreError> {
    let before = page.number_cursor(i64::MAX)?;
    let found: Vec<rows::DeploymentRow> = sqlx::query_as(
        "SELECT seq, id, project, state, created_at, ended_at, error, plan, source \
         FROM deployments WHERE seq < $1 ORDER BY seq DESC LIMIT $2",
    )
    .bind(before)
    .bind(page.limit_plus_one())
    .fetch_all(on)
    .await?;
    page.cut(found, |row| row.0.to_string()).try_map(rows::deployment)
}
