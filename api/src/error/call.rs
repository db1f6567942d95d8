//! Why a call did not get the function's own answer, as the gateway answers: what a VM says
//! ([`VmError`]), and what the gateway says before it asks one. Not the errors of the control
//! API.

use super::{ErrorBody, Fault, RETRY_SOON, Verdict, VmError};
use crate::ids::{FunctionName, RequestId, VersionNumber};
use http::StatusCode;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The request breaks HTTP or the rules of the public listener.
    #[error("{0}")]
    BadRequest(&'static str),
    /// The request's head has more bytes, or more fields, than the operator allows.
    #[error("the head of the request is too large")]
    HeadTooLarge,
    /// The target alone is longer than any head may be.
    #[error("the target of the request is too long")]
    TargetTooLong,
    /// The request's head was not complete in time.
    #[error("the head of the request took too long")]
    HeadTooSlow,
    /// Plain HTTP from another machine on a TLS listener.
    #[error("this listener requires TLS from other machines")]
    TlsRequired,
    /// The text before the first `/` is not the name of a function.
    #[error("no function is named `{0}`")]
    FunctionNotFound(String),
    /// The address names a version that does not exist (any more).
    #[error("`{function}` has no version {number}")]
    VersionNotFound {
        /// Which function.
        function: FunctionName,
        /// The version in the address.
        number: VersionNumber,
    },
    /// The address names a version, and the operator requires a key for those.
    #[error("calling a version of `{function}` by its address takes a key")]
    VersionGuarded {
        /// The called function.
        function: FunctionName,
    },
    /// All connection slots of the gateway are taken, and no connection is idle.
    #[error("the gateway has no room for another connection now")]
    GatewayFull,
    /// A VM's error, or one that the gateway words as a VM would.
    #[error(transparent)]
    Vm(#[from] VmError),
}

impl CallError {
    /// Every code that a verdict may have, with whose fault it is: counters by code exist before
    /// the first error.
    pub const KINDS: [(&str, Fault); 19] = [
        ("BAD_REQUEST", Fault::Caller),
        ("HEAD_TOO_LARGE", Fault::Caller),
        ("TARGET_TOO_LONG", Fault::Caller),
        ("HEAD_TOO_SLOW", Fault::Caller),
        ("FUNCTION_NOT_FOUND", Fault::Caller),
        ("VERSION_NOT_FOUND", Fault::Caller),
        ("UNAUTHORIZED", Fault::Caller),
        ("TLS_REQUIRED", Fault::Caller),
        ("BODY_TOO_LARGE", Fault::Caller),
        ("BODY_TOO_SLOW", Fault::Caller),
        ("CONCURRENCY_LIMIT", Fault::Caller),
        ("CALLER_GONE", Fault::Caller),
        ("FUNCTION_ERROR", Fault::Function),
        ("FUNCTION_CRASHED", Fault::Function),
        ("FUNCTION_INIT_FAILED", Fault::Function),
        ("FUNCTION_TIMEOUT", Fault::Function),
        ("FUNCTION_CRASHED", Fault::Platform),
        ("NO_CAPACITY", Fault::Platform),
        ("INTERNAL", Fault::Platform),
    ];

    /// Status, code, fault and retry of this error.
    pub fn verdict(&self) -> Verdict {
        use Fault::{Caller, Platform};
        let (status, code, fault, retry_safe, retry_after) = match self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "BAD_REQUEST", Caller, false, None),
            Self::HeadTooLarge => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "HEAD_TOO_LARGE", Caller, false, None)
            }
            Self::TargetTooLong => {
                (StatusCode::URI_TOO_LONG, "TARGET_TOO_LONG", Caller, false, None)
            }
            Self::HeadTooSlow => (StatusCode::REQUEST_TIMEOUT, "HEAD_TOO_SLOW", Caller, true, None),
            Self::TlsRequired => (StatusCode::BAD_REQUEST, "TLS_REQUIRED", Caller, true, None),
            Self::FunctionNotFound(_) => {
                (StatusCode::NOT_FOUND, "FUNCTION_NOT_FOUND", Caller, false, None)
            }
            Self::VersionNotFound { .. } => {
                (StatusCode::NOT_FOUND, "VERSION_NOT_FOUND", Caller, false, None)
            }
            Self::VersionGuarded { .. } => {
                (StatusCode::UNAUTHORIZED, "UNAUTHORIZED", Caller, false, None)
            }
            Self::GatewayFull => {
                (StatusCode::SERVICE_UNAVAILABLE, "NO_CAPACITY", Platform, true, Some(RETRY_SOON))
            }
            Self::Vm(err) => return err.verdict(),
        };
        Verdict { status, code, fault, retry_safe, retry_after }
    }

    /// A next step for the person who reads the answer, if there is one.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::FunctionNotFound(_) => "`epsilon functions` lists the names",
            Self::VersionNotFound { function, .. } => {
                return Some(format!(
                    "`epsilon versions {function}` lists the versions that exist"
                ));
            }
            Self::VersionGuarded { .. } => {
                "send the admin key as `x-epsilon-key`; the operator's setting is `gateway.version_addresses`"
            }
            Self::HeadTooLarge => "a head has at most 64 KiB and 1024 fields",
            Self::TlsRequired => "use `https://` instead of `http://`",
            Self::HeadTooSlow => "the operator's setting is `gateway.header_timeout`",
            Self::GatewayFull => "try again after `Retry-After`",
            Self::BadRequest(_) | Self::TargetTooLong => return None,
            Self::Vm(err) => return err.hint(),
        };
        Some(hint.to_owned())
    }

    /// The error body for the caller.
    pub fn body(&self, request_id: &RequestId) -> ErrorBody {
        let verdict = self.verdict();
        let mut body = ErrorBody::new(verdict.status, verdict.code, self.to_string(), self.hint());
        body.request_id = Some(request_id.clone());
        body
    }
}
