//! Which versions of a function get its calls: show the shares, split the calls, promote a version.
//! The changes are made in [`crate::functions`].

use super::{
    Shared,
    error::{ApiError, of_store},
    query::{InPath, Params, data, json},
};
use crate::{
    control::Control,
    functions::actor::Actor,
    routes::{Route, Sharing},
};
use axum::{Json, body::Body, extract::State};
use epsilon_api::{
    admin::{Data, FunctionInfo},
    error::ErrorEnvelope,
    ids::FunctionName,
    traffic::{PromoteRequest, SplitInfo, TrafficInfo, TrafficRequest, VersionTraffic},
};
use epsilon_store::StoreError;
use http::Uri;

const FIELDS: [&str; 6] =
    ["shares", "stable", "sticky", "abort_above_percent", "abort_window_ms", "abort_min_calls"];

/// Where the calls of a function go.
///
/// Counts are those of the gateway that answers.
#[utoipa::path(
    get,
    path = "/v1/functions/{name}/traffic",
    operation_id = "showTraffic",
    params(("name" = FunctionName, Path, description = "The function.")),
    responses(
        (status = 200, description = "The shares, and how the last split ended by itself.", body = Data<TrafficInfo>),
        (status = 404, description = "`FUNCTION_NOT_FOUND`", body = ErrorEnvelope),
    ),
)]
pub(super) async fn show(
    State(control): Shared,
    InPath(name): InPath<FunctionName>,
    uri: Uri,
) -> Result<Json<Data<TrafficInfo>>, ApiError> {
    Params::read(&uri, &[])?;
    Ok(Json(data(control.traffic_info(&name)?)))
}

/// Split the calls of a function among its versions.
///
/// Versions that get no calls yet have an instance before they do. One share of 100 ends a split.
#[utoipa::path(
    post,
    path = "/v1/functions/{name}/traffic",
    operation_id = "splitTraffic",
    params(("name" = FunctionName, Path, description = "The function.")),
    request_body(content = TrafficRequest),
    responses(
        (status = 200, description = "The shares after the change.", body = Data<TrafficInfo>),
        (status = 404, description = "`FUNCTION_NOT_FOUND`, `VERSION_NOT_FOUND`", body = ErrorEnvelope),
        (status = 409, description = "`ACTIVE_VERSION_CHANGED`", body = ErrorEnvelope),
        (status = 410, description = "`VERSION_NOT_KEPT`", body = ErrorEnvelope),
        (status = 413, description = "`BODY_TOO_LARGE`", body = ErrorEnvelope),
        (status = 422, description = "`INVALID_BODY`, `UNKNOWN_FIELD`, `INVALID_SHARES`", body = ErrorEnvelope),
        (status = 502, description = "`FUNCTION_INIT_FAILED`, `FUNCTION_CRASHED`: a version does not start; nothing was changed.", body = ErrorEnvelope),
        (status = 503, description = "`NO_CAPACITY`: no VM can start a version; nothing was changed", body = ErrorEnvelope),
        (status = 504, description = "`FUNCTION_TIMEOUT`: a version does not start in time; nothing was changed.", body = ErrorEnvelope),
        (status = 507, description = "`STORE_FULL`", body = ErrorEnvelope),
    ),
)]
pub(super) async fn split(
    State(control): Shared,
    actor: Actor,
    InPath(name): InPath<FunctionName>,
    uri: Uri,
    body: Body,
) -> Result<Json<Data<TrafficInfo>>, ApiError> {
    Params::read(&uri, &[])?;
    let request: TrafficRequest = json(body, &FIELDS).await?;
    control.functions.split(actor, name.clone(), request).await?;
    Ok(Json(data(control.traffic_info(&name)?)))
}

/// Give all calls to one version.
///
/// Without a version: the only one of a split beside the stable one. Ends the split; running calls
/// finish on the version where they began.
#[utoipa::path(
    post,
    path = "/v1/functions/{name}/promote",
    operation_id = "promote",
    params(("name" = FunctionName, Path, description = "The function.")),
    request_body(content = PromoteRequest, description = "Nothing counts as an empty object."),
    responses(
        (status = 200, description = "The function after the change.", body = Data<FunctionInfo>),
        (status = 404, description = "`FUNCTION_NOT_FOUND`, `VERSION_NOT_FOUND`", body = ErrorEnvelope),
        (status = 409, description = "`NOTHING_TO_PROMOTE`, `PROMOTE_WHICH`, `ACTIVE_VERSION_CHANGED`", body = ErrorEnvelope),
        (status = 410, description = "`VERSION_NOT_KEPT`", body = ErrorEnvelope),
        (status = 413, description = "`BODY_TOO_LARGE`", body = ErrorEnvelope),
        (status = 422, description = "`INVALID_BODY`, `UNKNOWN_FIELD`", body = ErrorEnvelope),
        (status = 502, description = "`FUNCTION_INIT_FAILED`, `FUNCTION_CRASHED`: a version does not start; nothing was changed.", body = ErrorEnvelope),
        (status = 503, description = "`NO_CAPACITY`: no VM can start a version; nothing was changed", body = ErrorEnvelope),
        (status = 504, description = "`FUNCTION_TIMEOUT`: a version does not start in time; nothing was changed.", body = ErrorEnvelope),
        (status = 507, description = "`STORE_FULL`", body = ErrorEnvelope),
    ),
)]
pub(super) async fn promote(
    State(control): Shared,
    actor: Actor,
    InPath(name): InPath<FunctionName>,
    uri: Uri,
    body: Body,
) -> Result<Json<Data<FunctionInfo>>, ApiError> {
    Params::read(&uri, &[])?;
    let PromoteRequest { version } = json(body, &["version"]).await?;
    let version = control.functions.promote(actor, name, version).await?;
    Ok(Json(data(control.info(version, &control.fleet.status()))))
}

impl Control {
    fn traffic_info(&self, name: &FunctionName) -> Result<TrafficInfo, ApiError> {
        let table = self.routes.table();
        let route = table.named(name.as_str());
        let route = route.ok_or_else(|| of_store(&StoreError::FunctionNotFound(name.clone())))?;
        let (shares, split) = match &route.sharing {
            Sharing::Split(split) => {
                let shares = split.targets().iter().map(|arm| {
                    let counts = arm.error_window.counts();
                    self.share(&arm.plain, arm.percent, counts.calls, counts.failed)
                });
                let since = split.terms.since;
                let terms = &split.terms.split;
                let sticky = terms.sticky.clone();
                (shares.collect(), Some(SplitInfo { since, sticky, abort: terms.abort }))
            }
            Sharing::Alone | Sharing::Aborted(_) => (vec![self.share(route, 100, 0, 0)], None),
        };
        let function = name.clone();
        let stable = route.version.number;
        Ok(TrafficInfo { function, stable, shares, split, aborted: route.aborted().cloned() })
    }

    fn share(&self, route: &Route, percent: u8, calls: u64, failed: u64) -> VersionTraffic {
        let version = route.version.number;
        let url = self.urls.of_version(&route.version.function, version);
        VersionTraffic { version, percent, url, calls, failed }
    }
}
