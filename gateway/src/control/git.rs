//! git's smart HTTP: `/git/PROJECT` and `/git/PROJECT.git`, with an API key as the password of any
//! user. Errors are plain text, which git prints on the terminal. The implementation is in
//! [`crate::source::git`].

use super::{
    Control, Shared,
    auth::{self, Peer},
    query::Params,
};
use crate::functions::actor::{Actor, KeyHolder};
use crate::keys;
use crate::keys::KeyCheckError;
use crate::observe::audit::{Action, ChangeRequested, Entrance, KeyRefused};
use crate::source::git;
use crate::source::git::command::GitError;
use crate::source::git::service::Service;
use crate::source::git::{Received, service};
use axum::{
    Extension, Router,
    body::Body,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use epsilon_api::{body::CallBody, chain::Chain, ids::ProjectName};
use epsilon_store::KeyRole;
use futures_util::TryStreamExt;
use http::{
    HeaderMap, HeaderValue, StatusCode, Uri,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
    },
};
use std::sync::Arc;

/// The header with the client's protocol version.
const PROTOCOL: &str = "git-protocol";
/// Asks for the password; credential helpers store it under this name.
const CHALLENGE: HeaderValue =
    HeaderValue::from_static(r#"Basic realm="Epsilon", charset="UTF-8""#);
/// Content type of errors for LFS clients, which print their `message`.
const LFS_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.git-lfs+json");

/// The paths that git uses.
pub(super) fn router() -> Router<Arc<Control>> {
    Router::new()
        .route("/git/{project}/info/refs", get(refs))
        .route("/git/{project}/git-receive-pack", post(receive))
        .route("/git/{project}/git-upload-pack", post(upload))
        .route("/git/{project}/info/lfs/{*rest}", any(lfs))
        .route("/git/{project}", any(browser))
}

/// `GET /git/PROJECT/info/refs?service=`: the first request of every push, clone and fetch.
async fn refs(
    State(control): Shared,
    Path(project): Path<String>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let project = enter(&control, &headers, peer, &project).await?;
    let params = Params::read(&uri, &["service"]).map_err(IntoResponse::into_response)?;
    let service: Option<String> = params.one("service").map_err(IntoResponse::into_response)?;
    let Some(service) = service.as_deref().and_then(Service::parse) else {
        return Err(text(
            StatusCode::FORBIDDEN,
            "this git client is too old: it does not support smart HTTP",
        ));
    };
    let list = control.git.advertise(&project, service, protocol(&headers)).await;
    Ok(answer(
        list.map_err(|why| refused(&project, why))?,
        &format!("application/x-{}-advertisement", service.name()),
    ))
}

/// `POST /git/PROJECT/git-receive-pack`: a push.
async fn receive(
    State(control): Shared,
    Path(project): Path<String>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Response, Response> {
    let project = enter(&control, request.headers(), peer, &project).await?;
    let key = key(request.headers());
    let key = key.as_deref().and_then(keys::id_of).unwrap_or_default().to_owned();
    let path = request.uri().path().to_owned();
    let (is_gzip, protocol) = form(request.headers()).map_err(IntoResponse::into_response)?;
    let body = request.into_body().into_data_stream().map_err(Into::into);
    let by = Actor::Git(KeyHolder { key: key.clone(), peer: peer.address });
    let push = Received { by, project: project.clone(), body, is_gzip, protocol };
    let said = control.git.receive(push).await.map_err(|why| refused(&project, why));
    // The deployment that results from the push is reported on its own.
    let status = said.as_ref().map_or_else(Response::status, |_| StatusCode::OK);
    let action = Action::Push;
    let peer = peer.address;
    let event = ChangeRequested {
        action,
        path: &path,
        key: &key,
        peer,
        status: Some(status),
        deployment: None,
    };
    event.emit(&control.audit);
    Ok(answer(said?, "application/x-git-receive-pack-result"))
}

/// `POST /git/PROJECT/git-upload-pack`: a clone or fetch.
async fn upload(
    State(control): Shared,
    Path(project): Path<String>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Response, Response> {
    let project = enter(&control, request.headers(), peer, &project).await?;
    let (is_gzip, protocol) = form(request.headers()).map_err(IntoResponse::into_response)?;
    let wants = request.into_body().into_data_stream().map_err(Into::into);
    let pack = control.git.fetch(&project, protocol, wants, is_gzip).await;
    let pack = pack.map_err(|why| refused(&project, why))?;
    Ok(answer(pack, "application/x-git-upload-pack-result"))
}

/// Git LFS looks for its server here before it lets git push.
async fn lfs() -> Response {
    let message =
        "Git LFS is not supported here: commit the files themselves (`git lfs migrate export`)";
    let body = serde_json::json!({"message": message}).to_string();
    (StatusCode::NOT_IMPLEMENTED, [(CONTENT_TYPE, LFS_TYPE)], body).into_response()
}

/// The remote's address was opened in a browser.
async fn browser() -> Response {
    text(
        StatusCode::NOT_FOUND,
        "this address is for git: `git remote add epsilon URL`, then `git push epsilon`",
    )
}

/// Checks the key and parses the project's name.
async fn enter(
    control: &Control,
    headers: &HeaderMap,
    peer: Peer,
    project: &str,
) -> Result<ProjectName, Response> {
    // Not audited: git always sends the first request without a password.
    let Some(key) = key(headers) else {
        return Err(locked("use an API key as the password, with any user name"));
    };
    match control.api_keys.role(&key).await {
        Ok(Some(KeyRole::Admin)) => {}
        Ok(_) => {
            KeyRefused { entrance: Entrance::Git, key: keys::id_of(&key), peer: peer.address }
                .emit(&control.audit);
            return Err(locked("this password is not an API key of this gateway"));
        }
        Err(KeyCheckError::StoreUnavailable | KeyCheckError::Store(_)) => {
            return Err(text(
                StatusCode::SERVICE_UNAVAILABLE,
                "the store does not answer; try again in a moment",
            ));
        }
    }
    let name = project.strip_suffix(".git").unwrap_or(project);
    ProjectName::parse(name).map_err(|err| text(StatusCode::NOT_FOUND, &err.to_string()))
}

/// The password of basic authentication, or a bearer key as on the other paths.
fn key(headers: &HeaderMap) -> Option<String> {
    if let Some(key) = auth::bearer(headers) {
        return Some(key.to_owned());
    }
    let (scheme, coded) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let plain = BASE64_STANDARD.decode(coded.trim()).ok()?;
    let (_, password) = std::str::from_utf8(&plain).ok()?.split_once(':')?;
    scheme.eq_ignore_ascii_case("basic").then(|| password.trim().to_owned())
}

fn protocol(headers: &HeaderMap) -> Option<String> {
    service::protocol(headers.get(PROTOCOL).and_then(|value| value.to_str().ok()))
}

/// Whether the body is compressed with gzip, and the protocol version.
fn form(headers: &HeaderMap) -> Result<(bool, Option<String>), StatusCode> {
    let is_gzip = match headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => false,
        Some(b"gzip" | b"x-gzip") => true,
        Some(_) => return Err(StatusCode::UNSUPPORTED_MEDIA_TYPE),
    };
    Ok((is_gzip, protocol(headers)))
}

fn answer(body: CallBody, kind: &str) -> Response {
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    if let Ok(kind) = HeaderValue::from_str(kind) {
        headers.insert(CONTENT_TYPE, kind);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0, must-revalidate"));
    response
}

fn locked(why: &str) -> Response {
    let mut response = text(StatusCode::UNAUTHORIZED, why);
    response.headers_mut().insert(WWW_AUTHENTICATE, CHALLENGE);
    response
}

/// git prints a text answer of an error.
fn text(status: StatusCode, text: &str) -> Response {
    (status, format!("{text}\n")).into_response()
}

fn refused(project: &ProjectName, why: git::Refused) -> Response {
    use crate::source::git::Refused;
    let status = match &why {
        Refused::Off | Refused::Unknown(_) => StatusCode::NOT_FOUND,
        Refused::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
        Refused::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
        Refused::NotGzip => StatusCode::BAD_REQUEST,
        Refused::Git(GitError::Missing | GitError::TooOld { .. }) => StatusCode::NOT_IMPLEMENTED,
        Refused::Git(_) | Refused::Repository(_) => {
            tracing::error!(%project, error = %Chain(&why), "git request failed with an internal error.");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    let mut response = text(status, &Chain(&why).to_string());
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}
