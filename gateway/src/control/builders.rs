//! `GET /v1/builders`: the builders and their state. Joined ones are queried, for two seconds at
//! most.

use super::{
    Shared,
    error::ApiError,
    query::{Listed, PAGING, PageParams, Params, listed},
};
use axum::{Json, extract::State};
use epsilon_api::admin::BuilderInfo;
use epsilon_store::Paged;
use http::Uri;

/// The builders, with their current state.
///
/// Queries the builders that joined, for two seconds at most. A fleet has few builders, so they are
/// one page.
#[utoipa::path(
    get,
    path = "/v1/builders",
    operation_id = "list_builders",
    params(PageParams),
    responses(
        (status = 200, description = "All builders.", body = Listed<BuilderInfo>),
    ),
)]
pub(super) async fn list(
    State(control): Shared,
    uri: Uri,
) -> Result<Json<Listed<BuilderInfo>>, ApiError> {
    Params::read(&uri, &PAGING)?.page()?;
    let items = control.deploys.builders.infos().await;
    Ok(Json(listed(Paged { items, next: None })))
}
