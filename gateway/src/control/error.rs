//! Errors of the control API. They leave a handler as an extension of the response; the listener's
//! handler adds the request id and writes the body.

use crate::functions::error::ChangeError;
use crate::keys::KeyCheckError;
use crate::store_error::{self, STORE_HINT, STORE_UNAVAILABLE};
use axum::{
    http::header::RETRY_AFTER,
    response::{IntoResponse, Response},
};
use epsilon_api::{
    chain::Chain,
    error::{ErrorBody, VmError},
};
use epsilon_store::StoreError;
use http::{HeaderValue, StatusCode};
use std::error::Error;

/// Seconds after which a retry is worthwhile: an unavailable store is probed every few seconds.
const SOON: HeaderValue = HeaderValue::from_static("2");

/// An error answer.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self { status, body: ErrorBody::new(status, code, message, None) }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            response.headers_mut().insert(RETRY_AFTER, SOON);
        }
        response.extensions_mut().insert(self.body);
        response
    }
}

/// An invalid body, path or parameter.
pub(crate) fn unprocessable(code: &str, message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
}

/// A bug or a broken machine: the log has the cause.
pub(crate) fn internal(err: &(dyn Error + 'static)) -> ApiError {
    tracing::error!(error = %Chain(err), "Control API request failed with an internal error.");
    let (status, body) = store_error::internal();
    ApiError { status, body }
}

/// All connection slots of this listener are taken, and no connection is idle.
pub(crate) fn gateway_full() -> ApiError {
    let message = "the gateway has no room for another connection now";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "NO_CAPACITY", message)
        .hint("try again in a moment; the operator's setting is `gateway.max_connections`")
}

/// The store is known to be unavailable: the request fails at once.
pub(crate) fn store_unavailable() -> ApiError {
    let message = "the store does not answer";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, STORE_UNAVAILABLE, message).hint(STORE_HINT)
}

/// The answer for an error of the store.
pub(crate) fn of_store(err: &StoreError) -> ApiError {
    match store_error::refusal(err) {
        Some((status, body)) => ApiError { status, body },
        None => internal(err),
    }
}

impl From<KeyCheckError> for ApiError {
    fn from(err: KeyCheckError) -> Self {
        match err {
            KeyCheckError::StoreUnavailable => store_unavailable(),
            KeyCheckError::Store(err) => of_store(&err),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(err: StoreError) -> Self {
        of_store(&err)
    }
}

impl From<ChangeError> for ApiError {
    fn from(err: ChangeError) -> Self {
        match &err {
            ChangeError::Store(err) => of_store(err),
            ChangeError::NotReady { cause, .. } => {
                let reason = match cause {
                    VmError::InitFailed { detail, .. } if !detail.is_empty() => {
                        format!("{cause}: {detail}")
                    }
                    other => Chain(other).to_string(),
                };
                let verdict = cause.verdict();
                Self::new(verdict.status, verdict.code, format!("{err}: {reason}"))
                    .hint("nothing was changed; the previous version still serves")
            }
            ChangeError::AbortRule => unprocessable("INVALID_BODY", err.to_string()),
            ChangeError::Panicked(_) => internal(&err),
        }
    }
}
