//! `GET /v1/autoscaler`: target, current actions and history of this gateway's autoscaler.

use super::{
    Shared,
    error::ApiError,
    query::{Params, data},
};
use axum::{Json, extract::State};
use epsilon_api::{admin::Data, autoscaler::AutoscalerInfo};
use http::Uri;

/// How many VMs this gateway's autoscaler wants, why, and what it did.
///
/// Of several gateways only the leader acts; each shows its own view.
#[utoipa::path(
    get,
    path = "/v1/autoscaler",
    operation_id = "autoscaler",
    responses(
        (status = 200, description = "The autoscaler.", body = Data<AutoscalerInfo>),
    ),
)]
pub(super) async fn show(
    State(control): Shared,
    uri: Uri,
) -> Result<Json<Data<AutoscalerInfo>>, ApiError> {
    Params::read(&uri, &[])?;
    Ok(Json(data(control.autoscaler.info())))
}
