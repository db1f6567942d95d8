//! Errors of the control API. They leave a handler as an extension of the response; the listener's
//! handler adds the request id and writes the body.

use crate::keys::Unknowable;
use axum::{
    http::header::RETRY_AFTER,
    response::{IntoResponse, Response},
};
use epsilon_api::{chain::Chain, error::ErrorBody};
use epsilon_store::StoreError;
use http::{HeaderValue, StatusCode};
use std::error::Error;

const STORE_UNAVAILABLE: &str = "STORE_UNAVAILABLE";
const STORE_HINT: &str = "calls go on; try again in a moment";

/// Seconds after which it is worth asking again: a store that was away is asked each few seconds.
const SOON: HeaderValue = HeaderValue::from_static("2");

/// An answer that is an error.
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

/// A body, path or parameter that cannot be understood.
pub(crate) fn unprocessable(code: &str, message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
}

/// A bug or a broken machine: the log knows more.
pub(crate) fn internal(err: &(dyn Error + 'static)) -> ApiError {
    tracing::error!(error = %Chain(err), "Control API failed.");
    let message = "the platform failed; its log says why";
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", message)
}

/// All connections of this listener are taken, and none is idle.
pub(crate) fn gateway_full() -> ApiError {
    let message = "the gateway has no room for another connection now";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "NO_CAPACITY", message)
        .hint("try again in a moment; the operator's setting is `gateway.max_connections`")
}

/// The store is known to be away: who asks shall not wait for it.
pub(crate) fn store_away() -> ApiError {
    let message = "the store does not answer";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, STORE_UNAVAILABLE, message).hint(STORE_HINT)
}

/// What the store's refusal means to the one who asked.
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
        E::VersionNotKept { function, .. } => (
            StatusCode::GONE,
            "VERSION_NOT_KEPT",
            Some(format!(
                "`epsilon versions {function}` lists the versions that exist; `gateway.keep_versions` says how many"
            )),
        ),
        E::VersionServes { function, .. } => (
            StatusCode::CONFLICT,
            "VERSION_SERVES",
            Some(format!(
                "let another version serve first: `epsilon rollback {function} --to N`, or deploy"
            )),
        ),
        E::ImageLeaving(_) => (StatusCode::CONFLICT, "IMAGE_LEAVING", Some("deploy again".into())),
        E::DeploymentNotFound(_) => (StatusCode::NOT_FOUND, "DEPLOYMENT_NOT_FOUND", None),
        E::NothingOlder { .. } => (
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
            Some("name the version that is to get all calls".into()),
        ),
        E::PromoteWhich { function } => (
            StatusCode::CONFLICT,
            "PROMOTE_WHICH",
            Some(format!("name it: `epsilon traffic {function}` shows the versions")),
        ),
        E::ActiveChanged { function, .. } => (
            StatusCode::CONFLICT,
            "ACTIVE_VERSION_CHANGED",
            Some(format!("look again with `epsilon traffic {function}`")),
        ),
        E::DeploymentOver(_) => (StatusCode::CONFLICT, "DEPLOYMENT_OVER", None),
        E::OwnedByOther { function, .. } => (
            StatusCode::CONFLICT,
            "NAME_TAKEN",
            Some(format!("rename it, or `epsilon delete {function}` first")),
        ),
        E::Superseded { .. } => (StatusCode::CONFLICT, "SUPERSEDED", None),
        E::DeletedMeanwhile(_) => {
            (StatusCode::CONFLICT, "DELETED_MEANWHILE", Some("deploy again".into()))
        }
        E::BadCursor(_) => (
            StatusCode::UNPROCESSABLE_ENTITY,
            "INVALID_PARAMETER",
            Some("take `pagination.next_cursor` of the page before".into()),
        ),
        E::MemberNotFound(_) => {
            (StatusCode::NOT_FOUND, "MEMBER_NOT_FOUND", Some("join again".into()))
        }
        E::Unavailable(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, STORE_UNAVAILABLE, Some(STORE_HINT.into()))
        }
        E::Full(_) => {
            tracing::debug!(error = %Chain(err), "The store does not write.");
            (
                StatusCode::INSUFFICIENT_STORAGE,
                "STORE_FULL",
                Some("calls go on; the operator frees space on the disk of the database".into()),
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

impl From<Unknowable> for ApiError {
    fn from(err: Unknowable) -> Self {
        match err {
            Unknowable::Away => store_away(),
            Unknowable::Store(err) => of_store(&err),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(err: StoreError) -> Self {
        of_store(&err)
    }
}
