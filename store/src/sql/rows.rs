//! Rows as stored in the tables, and their conversion to types of the store. The only place that
//! knows how a column is encoded.

use crate::{Deployed, Deployment, StoreError, Traffic};
use epsilon_api::{
    admin::DeploymentState,
    function::{ImageRef, Parts, Version},
    ids::{FunctionName, VersionNumber},
};
use jiff::Timestamp;
use serde_json::Value;
use std::str::FromStr;

/// function, number, project, deployment, image, digest, spec, created_at, parts.
pub(super) type VersionRow =
    (String, i64, String, String, String, String, String, String, Option<String>);

/// function, stable, split, since, aborted.
pub(super) type TrafficRow = (String, i64, String, String, Option<String>);

/// seq, id, project, state, created_at, ended_at, error, plan, source.
pub(super) type DeploymentRow = (
    i64,
    String,
    Option<String>,
    String,
    String,
    Option<String>,
    Option<String>,
    String,
    Option<String>,
);

fn corrupt<E>(what: &'static str) -> impl FnOnce(E) -> StoreError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |err| StoreError::Corrupt { what, source: err.into() }
}

/// Parses an id or a time from its column.
pub(super) fn parse<T>(what: &'static str, text: &str) -> Result<T, StoreError>
where
    T: FromStr,
    T::Err: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    text.parse().map_err(corrupt(what))
}

/// A time for its column: fixed width, so that texts sort as times do.
pub(super) fn time(at: Timestamp) -> String {
    format!("{at:.9}")
}

/// A version's number from its column.
pub(super) fn number(value: i64) -> Result<VersionNumber, StoreError> {
    u32::try_from(value)
        .ok()
        .and_then(VersionNumber::new)
        .ok_or_else(|| corrupt("version number")(value.to_string()))
}

/// A count for its column.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A count from its column.
pub(super) fn unsigned<T: TryFrom<i64>>(what: &'static str, value: i64) -> Result<T, StoreError> {
    T::try_from(value).map_err(|_| corrupt(what)(value.to_string()))
}

/// JSON for a column.
pub(super) fn json<T: serde::Serialize>(
    what: &'static str,
    value: &T,
) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(corrupt(what))
}

/// The layers of an image, for their column.
pub(super) fn parts_text(parts: Option<&Parts>) -> Result<Option<String>, StoreError> {
    parts.map(|parts| json("parts of an image", parts)).transpose()
}

pub(super) fn version(row: VersionRow) -> Result<Version, StoreError> {
    let (function, number_, project, deployment, reference, digest, spec, created_at, parts) = row;
    Ok(Version {
        function: parse("function name", &function)?,
        number: number(number_)?,
        project: parse("project name", &project)?,
        deployment: parse("deployment id", &deployment)?,
        image: ImageRef { reference, digest },
        parts: parts
            .map(|text| serde_json::from_str(&text).map_err(corrupt("parts of an image")))
            .transpose()?,
        spec: serde_json::from_str(&spec).map_err(corrupt("function's settings"))?,
        created_at: parse("time", &created_at)?,
    })
}

/// Without its candidates.
pub(super) fn traffic(row: TrafficRow) -> Result<Traffic, StoreError> {
    let (function, stable, split, since, aborted) = row;
    let aborted = aborted.map(|text| serde_json::from_str(&text));
    Ok(Traffic {
        function: parse("function name", &function)?,
        stable: number(stable)?,
        split: serde_json::from_str(&split).map_err(corrupt("split"))?,
        since: parse("time", &since)?,
        aborted: aborted.transpose().map_err(corrupt("end of a split"))?,
        candidates: Vec::new(),
    })
}

pub(super) fn deployment(row: DeploymentRow) -> Result<Deployment, StoreError> {
    let (_, id, project, state, created_at, ended_at, error, plan_, source) = row;
    let state: DeploymentState =
        serde_json::from_value(Value::String(state)).map_err(corrupt("deployment state"))?;
    Ok(Deployment {
        id: parse("deployment id", &id)?,
        project: project.map(|name| parse("project name", &name)).transpose()?,
        functions: if state == DeploymentState::Done { plan(&plan_)? } else { Vec::new() },
        state,
        created_at: parse("time", &created_at)?,
        ended_at: ended_at.map(|at| parse("time", &at)).transpose()?,
        error: error
            .map(|text| serde_json::from_str(&text).map_err(corrupt("deployment's error")))
            .transpose()?,
        source,
    })
}

/// The plan of a deployment, from its column.
pub(super) fn plan(text: &str) -> Result<Vec<Deployed>, StoreError> {
    let rows: Vec<(FunctionName, VersionNumber, bool)> =
        serde_json::from_str(text).map_err(corrupt("deployment's plan"))?;
    Ok(rows
        .into_iter()
        .map(|(name, version, changed)| Deployed { name, version, changed })
        .collect())
}

/// The plan of a deployment, for its column.
pub(super) fn plan_text(plan: &[Deployed]) -> Result<String, StoreError> {
    let rows: Vec<_> = plan.iter().map(|one| (&one.name, one.version, one.changed)).collect();
    json("deployment's plan", &rows)
}
