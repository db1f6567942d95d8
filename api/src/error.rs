//! Why a call did not get the function's own answer, and what to say of it to whom.
//!
//! One enum for gateway and agent, because an error crosses from one to the other on its way to the
//! caller. `Display` is for the caller: plain, without address, path or cause. The cause goes to the log
//! through [`crate::chain::Chain`]. Status, code, fault and retry are decided in [`CallError::verdict`]
//! and nowhere else; `docs/errors.md` is written from it.

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
    /// The request's head did not come as a whole in time.
    #[error("the head of the request took too long")]
    HeadTooSlow,
    /// Plain HTTP from another machine, where TLS is spoken.
    #[error("this listener speaks TLS with other machines")]
    TlsRequired,
    /// The text before the first `/` names nothing.
    #[error("no function is named `{0}`")]
    FunctionNotFound(String),
    /// The address names a version that is not kept.
    #[error("`{function}` has no version {number}")]
    VersionNotFound {
        /// Which function.
        function: FunctionName,
        /// What was asked for.
        number: VersionNumber,
    },
    /// The address names a version, and the operator lets nobody call those without a key.
    #[error("calling a version of `{function}` by its address takes a key")]
    VersionGuarded {
        /// Which function.
        function: FunctionName,
    },
    /// The caller sent, or announced, more than the operator allows.
    #[error("the request body is larger than {limit}")]
    BodyTooLarge {
        /// The operator's limit.
        limit: Bytes,
    },
    /// The caller sent its body more slowly than the operator allows, or had not sent all of it when the time of its
    /// call was over.
    #[error("the request body came in too slowly")]
    BodyTooSlow,
    /// Every place is taken and the bounded wait is over (or the queue is full).
    #[error("`{function}` is busy: all {limit} places are taken")]
    ConcurrencyLimit {
        /// Which function.
        function: FunctionName,
        /// Instances × concurrency.
        limit: u32,
    },
    /// The handler threw or rejected. Text and stack are in the log.
    #[error("`{function}` threw an error")]
    FunctionError {
        /// Which function.
        function: FunctionName,
    },
    /// The instance died or hung up before it answered.
    #[error("`{function}` stopped before it answered")]
    FunctionCrashed {
        /// Which function.
        function: FunctionName,
        /// What was seen: an exit status, a broken connection.
        #[source]
        cause: Cause,
    },
    /// The instance answered with what is no answer of HTTP, or with a head that is too large.
    #[error("the answer of `{function}` could not be read")]
    AnswerUnreadable {
        /// Which function.
        function: FunctionName,
        /// What is wrong with it.
        #[source]
        cause: Cause,
    },
    /// The VM that had taken the call died or was cut off. How far the call got is not known.
    #[error("the VM that ran `{function}` was lost before it answered")]
    VmLost {
        /// Which function.
        function: FunctionName,
        /// What was seen: a broken connection, silence.
        #[source]
        cause: Cause,
    },
    /// The code threw, exited or hung while loading.
    #[error("`{function}` could not be loaded")]
    InitFailed {
        /// Which function.
        function: FunctionName,
        /// The code's own error, for the developer's log and deployment; never for a caller.
        detail: String,
    },
    /// No VM has room, or none takes calls.
    #[error("no VM can take `{function}` now")]
    NoCapacity {
        /// Which function.
        function: FunctionName,
        /// Why, for the log.
        #[source]
        cause: Cause,
    },
    /// All connections of the gateway are taken, and none of them is idle.
    #[error("the gateway has no room for another connection now")]
    GatewayFull,
    /// The function's own `timeout` ran out.
    #[error("`{function}` did not answer within its timeout of {}", humantime::format_duration(*timeout))]
    FunctionTimeout {
        /// Which function.
        function: FunctionName,
        /// Its setting.
        timeout: Duration,
    },
    /// The caller went away while the call waited or ran. Nobody reads the answer; it is for the log.
    #[error("the caller hung up")]
    CallerGone,
    /// A bug or a broken machine.
    #[error("the platform failed; quote the request id to its operator")]
    Internal(#[source] Cause),
}

/// Who has to act. It picks the log level and a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The one who called.
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

/// All that the edge needs to know about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable code, upper case.
    pub code: &'static str,
    /// Who has to act.
    pub fault: Fault,
    /// Nothing of the call was executed: another VM, or the caller, may try again.
    pub retry_safe: bool,
    /// What `Retry-After` says.
    pub retry_after: Option<Duration>,
}

/// What `Retry-After` says when every place is taken: starts and calls are short, so try soon.
const RETRY_SOON: Duration = Duration::from_secs(1);
/// What it says when no VM has room: room comes with idle timeouts or new VMs.
const RETRY_LATER: Duration = Duration::from_secs(5);

impl CallError {
    /// Every code that a verdict may have, with whose fault it is: what is counted by them is there before the first one.
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

    /// The error for a request whose own body failed, found anywhere in the chain of causes; `None` when the
    /// body was not to blame, or its caller just went away.
    pub fn of_request_body(err: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let mut cause = Some(err);
        while let Some(one) = cause {
            if let Some(BodyTooLarge { limit }) = one.downcast_ref() {
                return Some(Self::BodyTooLarge { limit: *limit });
            }
            if one.is::<BodyTooSlow>() {
                return Some(Self::BodyTooSlow);
            }
            if one.is::<BodyMalformed>() {
                return Some(Self::BadRequest("the request's body is not framed as HTTP asks"));
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
            // To the caller the same as a crash, with the same code; but not the function's fault.
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
            // 499 is nginx's number for a caller that closed the connection; it is only ever logged.
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

    /// A next step for the one who reads the answer, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::FunctionNotFound(_) => Some("`epsilon functions` lists the names".into()),
            Self::VersionNotFound { function, .. } => {
                Some(format!("`epsilon versions {function}` lists those that are kept"))
            }
            Self::VersionGuarded { .. } => Some(
                "send the admin key as `x-epsilon-key`; the operator's setting is `gateway.version_addresses`".into(),
            ),
            Self::HeadTooLarge => {
                Some("the operator's settings are `gateway.max_header` and `gateway.max_headers`".into())
            }
            Self::TlsRequired => Some("use `https://` in place of `http://`".into()),
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
                Some("call again if it does no harm when it runs twice".into())
            }
            Self::NoCapacity { .. } | Self::GatewayFull => Some("try again after `Retry-After`".into()),
            Self::BadRequest(_) | Self::TargetTooLong | Self::CallerGone | Self::Internal(_) => None,
        }
    }

    /// What the caller is told.
    pub fn body(&self, request_id: &RequestId) -> ErrorBody {
        let verdict = self.verdict();
        let mut body = ErrorBody::new(verdict.status, verdict.code, self.to_string(), self.hint());
        body.request_id = Some(request_id.clone());
        body
    }
}

/// `{"error": …}` on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorEnvelope {
    /// The error.
    pub error: ErrorBody,
}

/// An error as callers and the CLI see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The kind: `invalid_request`, `not_found`, `unauthorized`, `conflict`, `limit`, `function` or `platform`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Stable, upper case.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// Which call.
    pub request_id: Option<RequestId>,
}

impl ErrorBody {
    /// An error whose `type` follows from its status and code.
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
