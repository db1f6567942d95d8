//! Deployments: create one and stream its progress, or read those of the past.

use super::{
    Shared,
    audit::Began,
    error::{ApiError, unprocessable},
    logs::lines,
    openapi::Archive,
    query::{InPath, Listed, PAGING, PageParams, Params, data, listed},
};
use crate::control::Control;
use crate::deploy::progress::Progress;
use crate::deploy::{Push, Work, builders, prebuilt};
use crate::functions::actor::Actor;
use axum::{
    Json,
    extract::{Request, State},
    response::Response,
};
use epsilon_api::{
    admin::{Data, DeployEvent, DeploymentInfo},
    body,
    build::{BuildError, BuildMessage, Built},
    error::ErrorEnvelope,
    ids::{DeploymentId, FunctionName},
    units::Bytes,
};
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode, Uri, header::CONTENT_TYPE};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;

/// Longest name of a folder that file systems allow.
const FOLDER_MAX: usize = 255;

/// Deployments, newest first.
#[utoipa::path(
    get,
    path = "/v1/deployments",
    operation_id = "list_deployments",
    params(PageParams),
    responses(
        (status = 200, description = "A page of deployments.", body = Listed<DeploymentInfo>),
    ),
)]
pub(super) async fn list(
    State(control): Shared,
    uri: Uri,
) -> Result<Json<Listed<DeploymentInfo>>, ApiError> {
    let page = Params::read(&uri, &PAGING)?.page()?;
    let part = control.store.deployments(&page).await?;
    Ok(Json(listed(part.map(|deployment| control.deploys.info(deployment)))))
}

/// One deployment.
#[utoipa::path(
    get,
    path = "/v1/deployments/{id}",
    operation_id = "get_deployment",
    params(("id" = DeploymentId, Path, description = "The deployment.")),
    responses(
        (status = 200, description = "The deployment.", body = Data<DeploymentInfo>),
        (status = 404, description = "`DEPLOYMENT_NOT_FOUND`", body = ErrorEnvelope),
    ),
)]
pub(super) async fn detail(
    State(control): Shared,
    InPath(id): InPath<DeploymentId>,
    uri: Uri,
) -> Result<Json<Data<DeploymentInfo>>, ApiError> {
    Params::read(&uri, &[])?;
    let deployment = control.store.deployment(&id).await?;
    Ok(Json(data(control.deploys.info(deployment))))
}

/// Push a project, or images made elsewhere.
///
/// All functions of the project together or none. Deployments of one project are queued. Hanging up
/// cancels a deployment that does not serve yet.
#[utoipa::path(
    post,
    path = "/v1/deployments",
    operation_id = "deploy",
    params(
        ("folder" = Option<String>, Query, nullable = false, max_length = 255, description = "Name of the project's folder, for a project without a name of its own; not with images."),
        ("only" = Option<Vec<FunctionName>>, Query, nullable = false, description = "Only this function. May be given several times."),
    ),
    request_body(
        content((inline(Archive) = "application/gzip"), (Built = "application/json")),
        description = "The project as tar.gz, or what `epsilon build --json` prints."
    ),
    responses(
        (status = 200, description = "What happens, one event per line, as it happens. The last line is `done` or `failed`; an answer that ends without one was cut.", body = DeployEvent, content_type = "application/x-ndjson"),
        (status = 400, description = "`BAD_REQUEST`: the document was cut.", body = ErrorEnvelope),
        (status = 413, description = "`BODY_TOO_LARGE`", body = ErrorEnvelope),
        (status = 422, description = "`BUILT_INVALID`", body = ErrorEnvelope),
        (status = 503, description = "`NO_BUILDER`: no builder has joined", body = ErrorEnvelope),
    ),
)]
pub(super) async fn create(
    State(control): Shared,
    actor: Actor,
    request: Request,
) -> Result<Response, ApiError> {
    let work = if is_json(request.headers()) {
        built(&control, request).await?.into()
    } else {
        push(&control, request)?.into()
    };
    Ok(carry_out(&control, actor, work))
}

/// A project to build here.
fn push(control: &Control, request: Request) -> Result<Push, ApiError> {
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
    let limit = control.body_limits.size;
    if request.body().size_hint().lower() > limit.get() {
        let message = format!("the archive is larger than {limit}");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", message)
            .hint("the operator's setting is `gateway.max_source`"));
    }
    Ok(Push { archive: body::boxed(request.into_body()), folder, only, project: None })
}

/// Images built elsewhere: the JSON of [`Built`], as `epsilon build --json` prints it.
async fn built(control: &Control, request: Request) -> Result<Built, ApiError> {
    let only = Params::read(request.uri(), &["only"])?.all("only")?;
    let body = Limited::new(request.into_body(), BuildMessage::LONGEST_LINE).collect().await;
    let body = body.map_err(|err| match err.downcast_ref::<LengthLimitError>() {
        Some(_) => {
            let most = Bytes(BuildMessage::LONGEST_LINE as u64);
            let message = format!("the document is larger than {most}");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", message)
        }
        None => {
            let message = "the upload was cut before the document's end";
            ApiError::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", message)
        }
    })?;
    let refused = |message: String| {
        unprocessable("BUILT_INVALID", message)
            .hint("`epsilon build --json` prints a valid document")
    };
    let text = body.to_bytes();
    let mut json = serde_json::Deserializer::from_slice(&text);
    let built: Built = serde_path_to_error::deserialize(&mut json)
        .map_err(|err| refused(format!("the document cannot be parsed: {err}")))?;
    json.end().map_err(|err| refused(format!("the document cannot be parsed: {err}")))?;
    let has_engine = control.deploys.builders.is_local();
    prebuilt::checked(built, &only, &control.deploys.ceilings, has_engine)
        .map_err(|err| refused(format!("the document cannot be deployed: {err}")))
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

fn carry_out(control: &Control, by: Actor, work: Work) -> Response {
    let (progress, reader) = Progress::new(Arc::clone(&control.deploys.metrics));
    let cancel = control.cancel.child_token();
    let hung_up = cancel.clone().drop_guard();
    let deploys = Arc::clone(&control.deploys);
    let id = DeploymentId::random();
    let began = Began(id.clone());
    control.background.spawn(async move {
        deploys.run(&by, id, work, progress, cancel).await;
    });
    let mut response = lines(ReceiverStream::new(reader).map(move |event| {
        let _ = &hung_up; // dropped with the answer's body
        event
    }));
    response.extensions_mut().insert(began);
    response
}

fn no_builder() -> ApiError {
    let BuildError { code, status, message, hint } = builders::no_builder();
    let error = ApiError::new(status, &code, message);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
