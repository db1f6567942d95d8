//! `GET /v1/builders`: who builds, and how each is at this moment. Those that joined are asked, for two seconds at most.

use super::{
    Shared,
    error::ApiError,
    query::{PAGING, Params, listed},
};
use axum::{Json, extract::State};
use epsilon_api::admin::{BuilderInfo, Data};
use epsilon_store::Paged;
use http::Uri;

/// See the module. A fleet has few; all of them are one part.
pub(super) async fn list(
    State(control): Shared,
    uri: Uri,
) -> Result<Json<Data<Vec<BuilderInfo>>>, ApiError> {
    Params::read(&uri, &PAGING)?.page()?;
    let items = control.deploys.builders.infos().await;
    Ok(Json(listed(Paged { items, next: None })))
}
