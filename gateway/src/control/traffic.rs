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
    ids::FunctionName,
    traffic::{PromoteRequest, SplitInfo, TrafficInfo, TrafficRequest, VersionTraffic},
};
use epsilon_store::StoreError;
use http::Uri;

const FIELDS: [&str; 6] =
    ["shares", "stable", "sticky", "abort_above_percent", "abort_window_ms", "abort_min_calls"];

/// `GET /v1/functions/{name}/traffic`
pub(super) async fn show(
    State(control): Shared,
    InPath(name): InPath<FunctionName>,
    uri: Uri,
) -> Result<Json<Data<TrafficInfo>>, ApiError> {
    Params::read(&uri, &[])?;
    Ok(Json(data(control.traffic_info(&name)?)))
}

/// `POST /v1/functions/{name}/traffic`: versions that get no calls yet are started before they do.
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

/// `POST /v1/functions/{name}/promote`: one version gets all calls; running calls finish on the
/// version where they began.
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
