//! `POST /v1/hooks/github/{project}`: a hub tells of a push. No key opens this path: the signature does.

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

/// Everything that was understood is 202, also where nothing is to be done: the hub counts all else as failed.
pub(super) async fn github(
    State(control): Shared,
    InPath(project): InPath<ProjectName>,
    request: Request,
) -> Result<(StatusCode, Json<Data<HookAnswer>>), ApiError> {
    Params::read(request.uri(), &[])?;
    if control.watch.away_since().is_some() {
        return Err(error::store_away());
    }
    let (head, body) = request.into_parts();
    let answer = control.hooks.receive(&project, &head.headers, body).await?;
    Ok((StatusCode::ACCEPTED, Json(data(answer))))
}
