//! Deployments: push one and read its story, or look at those of the past.

use super::{
    Shared,
    error::{ApiError, unprocessable},
    logs::lines,
    query::{InPath, PAGING, Params, data, listed},
};
use crate::deploy::{Push, builders, story::Story};
use axum::{
    Json,
    extract::{Request, State},
    response::Response,
};
use epsilon_api::{
    admin::{Data, DeploymentInfo},
    body,
    build::BuildError,
    ids::DeploymentId,
};
use futures_util::StreamExt;
use http::{StatusCode, Uri};
use http_body::Body as _;
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;

/// Longest name of a folder that file systems allow.
const FOLDER_MAX: usize = 255;

/// `GET /v1/deployments`
pub(super) async fn list(
    State(control): Shared,
    uri: Uri,
) -> Result<Json<Data<Vec<DeploymentInfo>>>, ApiError> {
    let page = Params::read(&uri, &PAGING)?.page()?;
    let part = control.store.deployments(&page).await?;
    Ok(Json(listed(part.map(|deployment| control.deploys.info(deployment)))))
}

/// `GET /v1/deployments/{id}`
pub(super) async fn detail(
    State(control): Shared,
    InPath(id): InPath<DeploymentId>,
    uri: Uri,
) -> Result<Json<Data<DeploymentInfo>>, ApiError> {
    Params::read(&uri, &[])?;
    let deployment = control.store.deployment(&id).await?;
    Ok(Json(data(control.deploys.info(deployment))))
}

/// `POST /v1/deployments?folder=NAME&only=F`: takes a tar.gz, answers with what happens. A client that
/// hangs up cancels the deployment, unless its versions serve already.
pub(super) async fn create(State(control): Shared, request: Request) -> Result<Response, ApiError> {
    let params = Params::read(request.uri(), &["folder", "only"])?;
    let folder: Option<String> = params.one("folder")?;
    if folder.as_ref().is_some_and(|folder| folder.len() > FOLDER_MAX) {
        let message = format!("`folder` is longer than {FOLDER_MAX} bytes");
        return Err(unprocessable("INVALID_PARAMETER", message));
    }
    let only = params.all("only")?;
    if control.deploys.builders.is_empty() {
        return Err(no_builder());
    }
    let limit = control.max_source;
    if request.body().size_hint().lower() > limit.get() {
        let message = format!("the archive is larger than {limit}");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", message)
            .hint("the operator's setting is `gateway.max_source`"));
    }
    let push = Push { archive: body::boxed(request.into_body()), folder, only, project: None };

    let (story, reader) = Story::new(Arc::clone(&control.deploys.metrics));
    let cancel = control.close.child_token();
    let hung_up = cancel.clone().drop_guard();
    let deploys = Arc::clone(&control.deploys);
    control.background.spawn(async move {
        deploys.run(DeploymentId::random(), push, story, cancel).await;
    });
    Ok(lines(ReceiverStream::new(reader).map(move |event| {
        let _ = &hung_up; // dropped with the answer's body
        event
    })))
}

fn no_builder() -> ApiError {
    let BuildError { code, status, message, hint } = builders::no_builder();
    let error = ApiError::new(status, &code, message);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
