//! Errors of the control API. They leave a handler as an extension of the response; the listener's
//! handler adds the request id and writes the body.

use crate::keys::KeyCheckError;
use axum::{
    http::header::RETRY_AFTER,
    response::{IntoResponse, Response},
};
use epsilon_api::{chain::Chain, error::ErrorBody};
use epsilon_store::StoreError;
use http::{HeaderValue, StatusCode};
use std::error::Error;

const STORE_UNAVAILABLE: &str = "STORE_UNAVAILABLE";
const STORE_HINT: &str = "calls are not affected; try again in a moment";

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

    pub(crate) fn message(&self) -> &str {
        &self.body.message
    }

    pub(crate) fn into_body(self) -> ErrorBody {
        self.body
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
    let message = "the platform failed; its log has the cause";
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", message)
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
    use StoreError as E;
    let (status, code, hint) = match err {
        E::FunctionNotFound(_) => (
            StatusCode::NOT_FOUND,
            "FUNCTION_NOT_FOUND",
            Some("`epsilon functions` lists the names".into()),
        ),
        E::VersionNotFound { function, .. } => (
            StatusCode::NOT_FOUND,
            "VERSION_NOT_FOUND",
            Some(format!("`epsilon versions {function}` lists the versions")),
        ),
        E::VersionRemoved { function, .. } => (
            StatusCode::GONE,
            "VERSION_NOT_KEPT",
            Some(format!(
                "`epsilon versions {function}` lists the stored versions; `gateway.keep_versions` sets how many are stored"
            )),
        ),
        E::VersionServes { function, .. } => (
            StatusCode::CONFLICT,
            "VERSION_SERVES",
            Some(format!(
                "activate another version first: `epsilon rollback {function} --to N`, or deploy"
            )),
        ),
        E::ImageBeingRemoved(_) => (StatusCode::CONFLICT, "IMAGE_LEAVING", Some("deploy again".into())),
        E::DeploymentNotFound(_) => (StatusCode::NOT_FOUND, "DEPLOYMENT_NOT_FOUND", None),
        E::NoOlderVersion { .. } => (
            StatusCode::CONFLICT,
            "NO_OLDER_VERSION",
            Some("name a version to roll back to".into()),
        ),
        E::Shares(_) => (
            StatusCode::UNPROCESSABLE_ENTITY,
            "INVALID_SHARES",
            Some("name each version once, like `3=90 4=10`".into()),
        ),
        E::NothingToPromote { .. } => (
            StatusCode::CONFLICT,
            "NOTHING_TO_PROMOTE",
            Some("name the version that should get all calls".into()),
        ),
        E::AmbiguousPromotion { function } => (
            StatusCode::CONFLICT,
            "PROMOTE_WHICH",
            Some(format!("name it: `epsilon traffic {function}` shows the versions")),
        ),
        E::ActiveChanged { function, .. } => (
            StatusCode::CONFLICT,
            "ACTIVE_VERSION_CHANGED",
            Some(format!("check with `epsilon traffic {function}`")),
        ),
        E::DeploymentEnded(_) => (StatusCode::CONFLICT, "DEPLOYMENT_OVER", None),
        E::OwnedByOther { function, .. } => (
            StatusCode::CONFLICT,
            "NAME_TAKEN",
            Some(format!("rename the function, or `epsilon delete {function}` first")),
        ),
        E::Superseded { .. } => (StatusCode::CONFLICT, "SUPERSEDED", None),
        E::DeletedMeanwhile(_) => {
            (StatusCode::CONFLICT, "DELETED_MEANWHILE", Some("deploy again".into()))
        }
        E::KeyNotFound(_) => {
            (StatusCode::NOT_FOUND, "KEY_NOT_FOUND", Some("`epsilon keys` lists the ids".into()))
        }
        E::KeyInUse { .. } => (
            StatusCode::CONFLICT,
            "KEY_IN_USE",
            Some(
                "delete that file and restart the gateway, and it makes another key; or force it (`epsilon keys rm --force`)"
                    .into(),
            ),
        ),
        E::BadCursor(_) => (
            StatusCode::UNPROCESSABLE_ENTITY,
            "INVALID_PARAMETER",
            Some("use `pagination.next_cursor` of the previous page".into()),
        ),
        E::MemberNotFound(_) => {
            (StatusCode::NOT_FOUND, "MEMBER_NOT_FOUND", Some("join again".into()))
        }
        E::Unavailable(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, STORE_UNAVAILABLE, Some(STORE_HINT.into()))
        }
        E::Full(_) => {
            tracing::debug!(error = %Chain(err), "Store is full; the request fails.");
            (
                StatusCode::INSUFFICIENT_STORAGE,
                "STORE_FULL",
                Some(
                    "calls are not affected; the operator must free disk space of the database"
                        .into(),
                ),
            )
        }
        E::UnknownScheme(_)
        | E::Open { .. }
        | E::Connect { .. }
        | E::Database(_)
        | E::Corrupt { .. } => {
            return internal(err);
        }
    };
    let mut error = ApiError::new(status, code, err.to_string());
    error.body.hint = hint;
    error
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
