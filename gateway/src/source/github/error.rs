//! Errors of refused deliveries, worded for the person who set up the webhook: GitHub shows them in
//! its list of recent deliveries.

use super::{event::Malformed, metrics::Outcome, payload::PayloadError};
use crate::control::error::{self, ApiError, unprocessable};
use epsilon_api::ids::{DeploymentId, ProjectName};
use epsilon_store::StoreError;
use http::StatusCode;
use std::error::Error;

/// Why a delivery is refused, and how that is counted.
#[derive(Debug)]
pub(crate) struct Rejection {
    pub(crate) outcome: Outcome,
    pub(crate) error: ApiError,
}

impl Rejection {
    fn new(outcome: Outcome, error: ApiError) -> Self {
        Self { outcome, error }
    }
}

pub(crate) fn no_hook(project: &ProjectName) -> Rejection {
    let message = format!("project `{project}` has no webhook");
    let error = ApiError::new(StatusCode::NOT_FOUND, "HOOK_NOT_FOUND", message);
    Rejection::new(
        Outcome::Invalid,
        error.hint("the operator configures it as `gateway.github.<project>`"),
    )
}

/// One text for every case, so that guessing reveals nothing.
pub(crate) fn unsigned() -> Rejection {
    let message =
        "the signature of this delivery is missing or was not made with this webhook's secret";
    let error = ApiError::new(StatusCode::UNAUTHORIZED, "SIGNATURE_REFUSED", message);
    Rejection::new(
        Outcome::Unsigned,
        error.hint(
            "the webhook's secret on GitHub and the content of `secret_file` must be the same",
        ),
    )
}

pub(crate) fn payload(err: PayloadError) -> Rejection {
    let (outcome, status, code) = match err {
        PayloadError::TooLarge(_) => {
            (Outcome::TooMuch, StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE")
        }
        PayloadError::TooSlow(_) => {
            (Outcome::Invalid, StatusCode::REQUEST_TIMEOUT, "BODY_TOO_SLOW")
        }
        PayloadError::Busy => (Outcome::TooMuch, StatusCode::SERVICE_UNAVAILABLE, "TOO_MANY_HOOKS"),
        PayloadError::Cut => (Outcome::Invalid, StatusCode::UNPROCESSABLE_ENTITY, "INVALID_BODY"),
    };
    Rejection::new(outcome, ApiError::new(status, code, err.to_string()))
}

pub(crate) fn header(header: &str) -> Rejection {
    let message = format!("the header `{header}` is missing or invalid");
    Rejection::new(Outcome::Invalid, unprocessable("INVALID_HEADER", message))
}

pub(crate) fn not_json() -> Rejection {
    let message = "the payload is not `application/json`";
    let error = ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "NOT_JSON", message);
    Rejection::new(
        Outcome::Invalid,
        error.hint("set the webhook's content type on GitHub to `application/json`"),
    )
}

pub(crate) fn replayed(earlier: &DeploymentId) -> Rejection {
    let message = format!("this delivery was received before; its deployment is `{earlier}`");
    let error = ApiError::new(StatusCode::CONFLICT, "DELIVERY_REPLAYED", message);
    Rejection::new(
        Outcome::Replayed,
        error.hint("it is accepted again only if that deployment has failed"),
    )
}

pub(crate) fn unable(code: &str, message: &str) -> Rejection {
    Rejection::new(Outcome::Unable, ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message))
}

pub(crate) fn malformed(err: &Malformed) -> Rejection {
    Rejection::new(Outcome::Invalid, unprocessable("INVALID_BODY", err.to_string()))
}

pub(crate) fn by_store(err: &StoreError) -> Rejection {
    Rejection::new(Outcome::Unable, error::of_store(err))
}

pub(crate) fn internal(err: &(dyn Error + 'static)) -> Rejection {
    Rejection::new(Outcome::Unable, error::internal(err))
}
