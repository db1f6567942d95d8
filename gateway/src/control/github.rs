//! `POST /v1/hooks/github/{project}`: GitHub reports a push. Authenticated by its signature, not by
//! a key.

use super::{
    Shared,
    error::{self, ApiError},
    query::{InPath, Params, data},
};
use axum::{
    Json,
    extract::{Request, State},
};
use epsilon_api::{admin::Data, hook::HookAnswer, ids::ProjectName};
use http::StatusCode;

/// Every understood event is answered 202, even if nothing is to be done: GitHub counts other
/// statuses as failed deliveries.
pub(super) async fn github(
    State(control): Shared,
    InPath(project): InPath<ProjectName>,
    request: Request,
) -> Result<(StatusCode, Json<Data<HookAnswer>>), ApiError> {
    Params::read(request.uri(), &[])?;
    if control.watch.unavailable_since().is_some() {
        return Err(error::store_unavailable());
    }
    let (head, body) = request.into_parts();
    let answer = control.hooks.receive(&project, &head.headers, body).await?;
    Ok((StatusCode::ACCEPTED, Json(data(answer))))
}
