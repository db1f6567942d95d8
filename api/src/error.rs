//! Why a call did not get the function's own answer, and what to report to whom.
//!
//! One enum for gateway and agent, because an error crosses from one to the other on its way to the
//! caller. `Display` is for the caller: plain, without address, path or cause. The cause goes to
//! the log through [`crate::chain::Chain`]. Status, code, fault and retry are decided in
//! [`CallError::verdict`] and nowhere else; `docs/errors.md` is generated from it.

use crate::{
    body::{BodyMalformed, BodyTooLarge, BodyTooSlow},
    ids::{FunctionName, RequestId, VersionNumber},
    units::Bytes,
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A cause that is only for the log.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

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
    /// The caller sent, or announced, a larger body than the operator allows.
    #[error("the request body is larger than {limit}")]
    BodyTooLarge {
        /// The operator's limit.
        limit: Bytes,
    },
    /// The caller sent its body more slowly than the operator allows, or was still sending at the
    /// deadline of its call.
    #[error("the request body arrived too slowly")]
    BodyTooSlow,
    /// All concurrency slots are taken and the bounded wait has ended (or the queue is full).
    #[error("`{function}` is busy: all {limit} concurrency slots are taken")]
    ConcurrencyLimit {
        /// The called function.
        function: FunctionName,
        /// Concurrency slots: instances × concurrency.
        limit: u32,
    },
    /// The handler threw or rejected. Text and stack are in the log.
    #[error("`{function}` threw an error")]
    FunctionError {
        /// The called function.
        function: FunctionName,
    },
    /// The instance died or closed the connection before it answered.
    #[error("`{function}` stopped before it answered")]
    FunctionCrashed {
        /// The called function.
        function: FunctionName,
        /// What was observed: an exit status, a broken connection.
        #[source]
        cause: Cause,
    },
    /// The instance's answer is not valid HTTP, or its head is too large.
    #[error("the answer of `{function}` could not be read")]
    AnswerUnreadable {
        /// The called function.
        function: FunctionName,
        /// What is wrong with it.
        #[source]
        cause: Cause,
    },
    /// The VM that ran the call died or was cut off. How far the call got is unknown.
    #[error("the VM that ran `{function}` was lost before it answered")]
    VmLost {
        /// The called function.
        function: FunctionName,
        /// What was observed: a broken connection, missing reports.
        #[source]
        cause: Cause,
    },
    /// The code threw, exited or hung while loading.
    #[error("`{function}` could not be loaded")]
    InitFailed {
        /// The called function.
        function: FunctionName,
        /// The code's own error, for the developer's log and deployment; never for a caller.
        detail: String,
    },
    /// No VM has room, or none accepts calls.
    #[error("no VM can take `{function}` now")]
    NoCapacity {
        /// The called function.
        function: FunctionName,
        /// The reason, for the log.
        #[source]
        cause: Cause,
    },
    /// All connection slots of the gateway are taken, and no connection is idle.
    #[error("the gateway has no room for another connection now")]
    GatewayFull,
    /// The function's own `timeout` ran out.
    #[error("`{function}` did not answer within its timeout of {}", humantime::format_duration(*timeout))]
    FunctionTimeout {
        /// The called function.
        function: FunctionName,
        /// The function's `timeout`.
        timeout: Duration,
    },
    /// The caller hung up while the call waited or ran. The answer is for the log only.
    #[error("the caller hung up")]
    CallerGone,
    /// A bug or a failure of the machine.
    #[error("the platform failed; quote the request id to its operator")]
    Internal(#[source] Cause),
}

/// Who has to act. It picks the log level and a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The caller.
    Caller,
    /// The function's author.
    Function,
    /// The operator.
    Platform,
}

impl Fault {
    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Function => "function",
            Self::Platform => "platform",
        }
    }
}

/// What the gateway's edge needs to know about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable code, upper case.
    pub code: &'static str,
    /// Who has to act.
    pub fault: Fault,
    /// No code of the call was executed: another VM, or the caller, may try again.
    pub retry_safe: bool,
    /// Value of `Retry-After`.
    pub retry_after: Option<Duration>,
}

/// `Retry-After` when all slots are taken: starts and calls are short, so try soon.
const RETRY_SOON: Duration = Duration::from_secs(1);
/// `Retry-After` when no VM has room: room comes with idle timeouts or new VMs.
const RETRY_LATER: Duration = Duration::from_secs(5);

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

    /// The error for a request whose own body failed, found anywhere in the chain of sources;
    /// `None` when the body was not the reason, or its caller just hung up.
    pub fn from_body_error(err: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let mut cause = Some(err);
        while let Some(one) = cause {
            if let Some(BodyTooLarge { limit }) = one.downcast_ref() {
                return Some(Self::BodyTooLarge { limit: *limit });
            }
            if one.is::<BodyTooSlow>() {
                return Some(Self::BodyTooSlow);
            }
            if one.is::<BodyMalformed>() {
                return Some(Self::BadRequest("the request body is not framed as HTTP requires"));
            }
            cause = one.source();
        }
        None
    }

    /// Status, code, fault and retry of this error.
    pub fn verdict(&self) -> Verdict {
        use Fault::{Caller, Function, Platform};
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
            Self::BodyTooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", Caller, false, None)
            }
            Self::BodyTooSlow => {
                (StatusCode::REQUEST_TIMEOUT, "BODY_TOO_SLOW", Caller, false, None)
            }
            Self::ConcurrencyLimit { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "CONCURRENCY_LIMIT", Caller, true, Some(RETRY_SOON))
            }
            Self::FunctionError { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "FUNCTION_ERROR", Function, false, None)
            }
            Self::FunctionCrashed { .. } | Self::AnswerUnreadable { .. } => {
                (StatusCode::BAD_GATEWAY, "FUNCTION_CRASHED", Function, false, None)
            }
            // For the caller the same as a crash, with the same code; but not the function's fault.
            Self::VmLost { .. } => {
                (StatusCode::BAD_GATEWAY, "FUNCTION_CRASHED", Platform, false, None)
            }
            Self::InitFailed { .. } => {
                (StatusCode::BAD_GATEWAY, "FUNCTION_INIT_FAILED", Function, false, None)
            }
            Self::NoCapacity { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "NO_CAPACITY", Platform, true, Some(RETRY_LATER))
            }
            Self::GatewayFull => {
                (StatusCode::SERVICE_UNAVAILABLE, "NO_CAPACITY", Platform, true, Some(RETRY_SOON))
            }
            Self::FunctionTimeout { .. } => {
                (StatusCode::GATEWAY_TIMEOUT, "FUNCTION_TIMEOUT", Function, false, None)
            }
            // 499 is nginx's number for a caller that closed the connection; it is only logged.
            Self::CallerGone => (
                StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
                "CALLER_GONE",
                Caller,
                false,
                None,
            ),
            Self::Internal(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", Platform, false, None)
            }
        };
        Verdict { status, code, fault, retry_safe, retry_after }
    }

    /// A next step for the person who reads the answer, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::FunctionNotFound(_) => Some("`epsilon functions` lists the names".into()),
            Self::VersionNotFound { function, .. } => {
                Some(format!("`epsilon versions {function}` lists the versions that exist"))
            }
            Self::VersionGuarded { .. } => Some(
                "send the admin key as `x-epsilon-key`; the operator's setting is `gateway.version_addresses`".into(),
            ),
            Self::HeadTooLarge => {
                Some("the operator's settings are `gateway.max_header` and `gateway.max_headers`".into())
            }
            Self::TlsRequired => Some("use `https://` instead of `http://`".into()),
            Self::HeadTooSlow => Some("the operator's setting is `gateway.header_timeout`".into()),
            Self::BodyTooLarge { .. } => {
                Some("the operator's setting is `gateway.max_body`".into())
            }
            Self::BodyTooSlow => Some(
                "the operator's settings are `gateway.body_timeout` and `gateway.min_body_rate`; the author's is `timeout`".into(),
            ),
            Self::ConcurrencyLimit { .. } => Some(
                "try again after `Retry-After`; the author can raise `maxInstances` or `concurrency`"
                    .into(),
            ),
            Self::FunctionError { function }
            | Self::FunctionCrashed { function, .. }
            | Self::AnswerUnreadable { function, .. }
            | Self::InitFailed { function, .. } => {
                Some(format!("`epsilon logs {function}` shows why"))
            }
            Self::FunctionTimeout { function, .. } => {
                Some(format!("the limit is `timeout` in the settings of `{function}`"))
            }
            Self::VmLost { .. } => {
                Some("call again if the function is safe to run twice".into())
            }
            Self::NoCapacity { .. } | Self::GatewayFull => Some("try again after `Retry-After`".into()),
            Self::BadRequest(_) | Self::TargetTooLong | Self::CallerGone | Self::Internal(_) => None,
        }
    }

    /// The error body for the caller.
    pub fn body(&self, request_id: &RequestId) -> ErrorBody {
        let verdict = self.verdict();
        let mut body = ErrorBody::new(verdict.status, verdict.code, self.to_string(), self.hint());
        body.request_id = Some(request_id.clone());
        body
    }
}

/// `{"error": …}` in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorEnvelope {
    /// The error body.
    pub error: ErrorBody,
}

/// An error as callers and the CLI see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// The kind: `invalid_request`, `not_found`, `unauthorized`, `conflict`, `limit`, `function` or
    /// `platform`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Stable, upper case.
    pub code: String,
    /// What happened, for people.
    pub message: String,
    /// What to do next, for people.
    pub hint: Option<String>,
    /// The call that failed.
    pub request_id: Option<RequestId>,
}

impl ErrorBody {
    /// An error body whose `type` follows from status and code.
    pub fn new(
        status: StatusCode,
        code: &str,
        message: impl Into<String>,
        hint: Option<String>,
    ) -> Self {
        let kind = match status.as_u16() {
            _ if code.starts_with("FUNCTION_") && code != "FUNCTION_NOT_FOUND" => "function",
            401 | 403 => "unauthorized",
            404 => "not_found",
            409 => "conflict",
            408 | 413 | 429 => "limit",
            400..=499 => "invalid_request",
            _ => "platform",
        };
        Self {
            kind: kind.into(),
            code: code.to_owned(),
            message: message.into(),
            hint,
            request_id: None,
        }
    }

    /// In its envelope, as JSON text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&ErrorEnvelope { error: self.clone() })
            .unwrap_or_else(|_| r#"{"error":{"type":"platform","code":"INTERNAL"}}"#.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> FunctionName {
        FunctionName::parse("pay").unwrap()
    }

    #[test]
    fn the_caller_never_sees_the_cause() {
        let err = CallError::FunctionCrashed {
            function: name(),
            cause: "connect /var/lib/epsilon/x.sock: refused".into(),
        };
        let body = err.body(&RequestId::random()).to_json();
        assert!(!body.contains("sock"), "{body}");
        let err = CallError::InitFailed { function: name(), detail: "at /app/secret.js".into() };
        assert!(!err.body(&RequestId::random()).to_json().contains("secret"));
    }

    #[test]
    fn the_contract_of_codes() {
        let function = name();
        let rows = [
            (CallError::FunctionNotFound("x".into()), 404, "FUNCTION_NOT_FOUND", "not_found"),
            (
                CallError::VersionNotFound {
                    function: function.clone(),
                    number: VersionNumber::FIRST,
                },
                404,
                "VERSION_NOT_FOUND",
                "not_found",
            ),
            (
                CallError::VersionGuarded { function: function.clone() },
                401,
                "UNAUTHORIZED",
                "unauthorized",
            ),
            (CallError::BodyTooLarge { limit: Bytes(1) }, 413, "BODY_TOO_LARGE", "limit"),
            (CallError::BodyTooSlow, 408, "BODY_TOO_SLOW", "limit"),
            (
                CallError::ConcurrencyLimit { function: function.clone(), limit: 2 },
                429,
                "CONCURRENCY_LIMIT",
                "limit",
            ),
            (
                CallError::FunctionError { function: function.clone() },
                500,
                "FUNCTION_ERROR",
                "function",
            ),
            (
                CallError::FunctionCrashed { function: function.clone(), cause: "x".into() },
                502,
                "FUNCTION_CRASHED",
                "function",
            ),
            (
                CallError::VmLost { function: function.clone(), cause: "x".into() },
                502,
                "FUNCTION_CRASHED",
                "function",
            ),
            (
                CallError::InitFailed { function: function.clone(), detail: String::new() },
                502,
                "FUNCTION_INIT_FAILED",
                "function",
            ),
            (
                CallError::NoCapacity { function: function.clone(), cause: "x".into() },
                503,
                "NO_CAPACITY",
                "platform",
            ),
            (CallError::GatewayFull, 503, "NO_CAPACITY", "platform"),
            (
                CallError::FunctionTimeout { function, timeout: Duration::from_secs(1) },
                504,
                "FUNCTION_TIMEOUT",
                "function",
            ),
        ];
        for (err, status, code, kind) in rows {
            let verdict = err.verdict();
            assert_eq!((verdict.status.as_u16(), verdict.code), (status, code));
            assert_eq!(err.body(&RequestId::random()).kind, kind, "{code}");
            assert_eq!(verdict.retry_after.is_some(), matches!(status, 429 | 503), "{code}");
        }
    }
}
