//! `GET /v1/autoscaler`: what this gateway's autoscaler wants, does and did.

use super::{
    Shared,
    error::ApiError,
    query::{Params, data},
};
use axum::{Json, extract::State};
use epsilon_api::{admin::Data, autoscaler::AutoscalerInfo};
use http::Uri;

/// See the module.
pub(super) async fn show(
    State(control): Shared,
    uri: Uri,
) -> Result<Json<Data<AutoscalerInfo>>, ApiError> {
    Params::read(&uri, &[])?;
    Ok(Json(data(control.autoscaler.info())))
}
