//! `GET /v1/builders`: the builders and their state. Joined ones are queried, for two seconds at
//! most.

use super::{
    Shared,
    error::ApiError,
    query::{PAGING, Params, listed},
};
use axum::{Json, extract::State};
use epsilon_api::admin::{BuilderInfo, Data};
use epsilon_store::Paged;
use http::Uri;

/// The handler. A fleet has few builders, so they are one page.
pub(super) async fn list(
    State(control): Shared,
    uri: Uri,
) -> Result<Json<Data<Vec<BuilderInfo>>>, ApiError> {
    Params::read(&uri, &PAGING)?.page()?;
    let items = control.deploys.builders.infos().await;
    Ok(Json(listed(Paged { items, next: None })))
}
