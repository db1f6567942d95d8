//! `GET /v1/autoscaler`: target, current actions and history of this gateway's autoscaler.

use super::{
    Shared,
    error::ApiError,
    query::{Params, data},
};
use axum::{Json, extract::State};
use epsilon_api::{admin::Data, autoscaler::AutoscalerInfo};
use http::Uri;

/// The handler.
pub(super) async fn show(
    State(control): Shared,
    uri: Uri,
) -> Result<Json<Data<AutoscalerInfo>>, ApiError> {
    Params::read(&uri, &[])?;
    Ok(Json(data(control.autoscaler.info())))
}
