//! `POST /v1/hooks/github/{project}`: GitHub reports a push. Authenticated by its signature, not by
//! a key.

use super::{
    Shared,
    error::{self, ApiError, unprocessable},
    openapi::Payload,
    query::{InPath, Params, data},
};
use crate::source::github::{DeliveryError, PayloadError};
use axum::{
    Json,
    extract::{Request, State},
};
use epsilon_api::{admin::Data, error::ErrorEnvelope, hook::HookAnswer, ids::ProjectName};
use http::StatusCode;

/// GitHub's webhook reports a push.
///
/// Authenticated by the signature, not by a key. The events `ping` and `push` are handled. Every
/// understood event is answered 202, even if nothing is to be done: GitHub counts other statuses as
/// failed deliveries.
#[utoipa::path(
    post,
    path = "/v1/hooks/github/{project}",
    operation_id = "github_hook",
    params(
        ("project" = ProjectName, Path, description = "The project that the hook deploys."),
        ("X-GitHub-Event" = String, Header, description = "Kind of event."),
        ("X-GitHub-Delivery" = String, Header, description = "Id of the delivery."),
        ("X-Hub-Signature-256" = String, Header, description = "`sha256=` and the HMAC of the body with the hook's secret."),
    ),
    request_body(content((inline(Payload) = "application/json")), description = "GitHub's payload."),
    responses(
        (status = 202, description = "The delivery was handled; `result` is the outcome.", body = Data<HookAnswer>),
        (status = 401, description = "`SIGNATURE_REFUSED`", body = ErrorEnvelope),
        (status = 404, description = "`HOOK_NOT_FOUND`", body = ErrorEnvelope),
        (status = 408, description = "`BODY_TOO_SLOW`", body = ErrorEnvelope),
        (status = 409, description = "`DELIVERY_REPLAYED`", body = ErrorEnvelope),
        (status = 413, description = "`BODY_TOO_LARGE`: more than 25 MiB", body = ErrorEnvelope),
        (status = 415, description = "`NOT_JSON`", body = ErrorEnvelope),
        (status = 422, description = "`INVALID_BODY`, `INVALID_HEADER`", body = ErrorEnvelope),
        (status = 503, description = "`HOOK_NOT_READY`, `TOO_MANY_HOOKS`, `STORE_UNAVAILABLE`", body = ErrorEnvelope),
        (status = 507, description = "`STORE_FULL`", body = ErrorEnvelope),
    ),
    security(()),
)]
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

impl From<DeliveryError> for ApiError {
    fn from(err: DeliveryError) -> Self {
        use DeliveryError as E;
        let text = err.to_string();
        let unavailable = |code| Self::new(StatusCode::SERVICE_UNAVAILABLE, code, text.clone());
        match &err {
            E::NoHook(_) => Self::new(StatusCode::NOT_FOUND, "HOOK_NOT_FOUND", text)
                .hint("the operator configures it as `gateway.github.<project>`"),
            E::Unsigned => Self::new(StatusCode::UNAUTHORIZED, "SIGNATURE_REFUSED", text).hint(
                "the webhook's secret on GitHub and the content of `secret_file` must be the same",
            ),
            E::Payload(PayloadError::TooLarge(_)) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", text)
            }
            E::Payload(PayloadError::TooSlow(_)) => {
                Self::new(StatusCode::REQUEST_TIMEOUT, "BODY_TOO_SLOW", text)
            }
            E::Payload(PayloadError::Busy) => unavailable("TOO_MANY_HOOKS"),
            E::Payload(PayloadError::Cut) | E::Malformed(_) => unprocessable("INVALID_BODY", text),
            E::Header(_) => unprocessable("INVALID_HEADER", text),
            E::NotJson => Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "NOT_JSON", text)
                .hint("set the webhook's content type on GitHub to `application/json`"),
            E::Replayed(_) => Self::new(StatusCode::CONFLICT, "DELIVERY_REPLAYED", text)
                .hint("it is accepted again only if that deployment has failed"),
            E::SecretUnusable | E::Stopping => unavailable("HOOK_NOT_READY"),
            E::NoBuilder => unavailable("NO_BUILDER"),
            E::Store(err) => error::of_store(err),
            E::Panicked(_) => error::internal(&err),
        }
    }
}
