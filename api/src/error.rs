//! Why a call did not get the function's own answer, and what to report to whom.
//!
//! [`VmError`] is what a VM says; [`CallError`] is what the gateway answers, and wraps it.
//! `Display` is for the caller: plain, without address, path or cause. The cause goes to the log
//! through [`crate::chain::Chain`]. Status, code, fault and retry are decided in their `verdict`
//! and nowhere else; `docs/errors.md` is generated from it. [`ErrorBody`] is the form of every
//! error in JSON.

mod call;
mod vm;

pub use call::CallError;
pub use vm::VmError;

use crate::ids::RequestId;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A cause that is only for the log.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

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

/// Status of a call whose caller closed the connection: nginx's number for it. Logged and counted,
/// never sent.
pub const CALLER_GONE: u16 = 499;

/// `Retry-After` when all slots are taken: starts and calls are short, so try soon.
const RETRY_SOON: Duration = Duration::from_secs(1);
/// `Retry-After` when no VM has room: room comes with idle timeouts or new VMs.
const RETRY_LATER: Duration = Duration::from_secs(5);

/// `{"error": …}` in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorEnvelope {
    /// The error body.
    pub error: ErrorBody,
}

/// The kinds of errors, as programs tell them apart: `type` in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ErrorKind {
    /// The request has to be corrected.
    InvalidRequest,
    /// What it names does not exist.
    NotFound,
    /// It needs a key, or another one.
    Unauthorized,
    /// It does not fit the present state.
    Conflict,
    /// It is too large, too slow or too many.
    Limit,
    /// The function's code failed.
    Function,
    /// The program that prints the error failed, without or before an answer of the platform.
    Client,
    /// The platform failed; so does a kind that only a newer release knows.
    #[serde(other)]
    Platform,
}

impl ErrorKind {
    /// The kind that follows from a status and a code.
    fn of(status: StatusCode, code: &str) -> Self {
        match (code, status.as_u16()) {
            (
                "FUNCTION_ERROR" | "FUNCTION_CRASHED" | "FUNCTION_INIT_FAILED" | "FUNCTION_TIMEOUT",
                _,
            ) => Self::Function,
            (_, 401 | 403) => Self::Unauthorized,
            (_, 404) => Self::NotFound,
            (_, 409) => Self::Conflict,
            (_, 408 | 413 | 429) => Self::Limit,
            (_, 400..500) => Self::InvalidRequest,
            _ => Self::Platform,
        }
    }
}

/// An error as callers and the CLI see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// What kind of error it is.
    #[serde(rename = "type")]
    pub kind: ErrorKind,
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
        Self {
            kind: ErrorKind::of(status, code),
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
    use crate::{
        ids::{FunctionName, VersionNumber},
        units::Bytes,
    };

    /// `type` is a contract; what a newer release adds must not make the whole error unreadable.
    #[test]
    fn kinds_are_the_same_words_in_json() {
        use ErrorKind::{
            Client, Conflict, Function, InvalidRequest, Limit, NotFound, Platform, Unauthorized,
        };
        for (kind, word) in [
            (InvalidRequest, "\"invalid_request\""),
            (NotFound, "\"not_found\""),
            (Unauthorized, "\"unauthorized\""),
            (Conflict, "\"conflict\""),
            (Limit, "\"limit\""),
            (Function, "\"function\""),
            (Client, "\"client\""),
            (Platform, "\"platform\""),
        ] {
            assert_eq!(serde_json::to_string(&kind).unwrap(), word);
            assert_eq!(serde_json::from_str::<ErrorKind>(word).unwrap(), kind);
        }
        assert_eq!(serde_json::from_str::<ErrorKind>("\"of_tomorrow\"").unwrap(), Platform);
        let kind = |status, code| ErrorKind::of(StatusCode::from_u16(status).unwrap(), code);
        assert_eq!(kind(422, "INVALID_BODY"), InvalidRequest);
        assert_eq!(kind(404, "FUNCTION_NOT_FOUND"), NotFound);
        assert_eq!(kind(507, "STORE_FULL"), Platform);
    }

    fn name() -> FunctionName {
        FunctionName::parse("pay").unwrap()
    }

    #[test]
    fn the_caller_never_sees_the_cause() {
        let err = CallError::from(VmError::FunctionCrashed {
            function: name(),
            cause: "connect /var/lib/epsilon/x.sock: refused".into(),
        });
        let body = err.body(&RequestId::random()).to_json();
        assert!(!body.contains("sock"), "{body}");
        let err = VmError::InitFailed { function: name(), detail: "at /app/secret.js".into() };
        let err = CallError::from(err);
        assert!(!err.body(&RequestId::random()).to_json().contains("secret"));
    }

    #[test]
    fn the_contract_of_codes() {
        let function = name();
        let rows: [(CallError, u16, &str, &str); 13] = [
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
            (VmError::BodyTooLarge { limit: Bytes(1) }.into(), 413, "BODY_TOO_LARGE", "limit"),
            (VmError::BodyTooSlow.into(), 408, "BODY_TOO_SLOW", "limit"),
            (
                VmError::ConcurrencyLimit { function: function.clone(), limit: 2 }.into(),
                429,
                "CONCURRENCY_LIMIT",
                "limit",
            ),
            (
                VmError::FunctionError { function: function.clone() }.into(),
                500,
                "FUNCTION_ERROR",
                "function",
            ),
            (
                VmError::FunctionCrashed { function: function.clone(), cause: "x".into() }.into(),
                502,
                "FUNCTION_CRASHED",
                "function",
            ),
            (
                VmError::Lost { function: function.clone(), cause: "x".into() }.into(),
                502,
                "FUNCTION_CRASHED",
                "function",
            ),
            (
                VmError::InitFailed { function: function.clone(), detail: String::new() }.into(),
                502,
                "FUNCTION_INIT_FAILED",
                "function",
            ),
            (
                VmError::NoCapacity { function: function.clone(), cause: "x".into() }.into(),
                503,
                "NO_CAPACITY",
                "platform",
            ),
            (CallError::GatewayFull, 503, "NO_CAPACITY", "platform"),
            (
                VmError::FunctionTimeout { function, timeout: Duration::from_secs(1) }.into(),
                504,
                "FUNCTION_TIMEOUT",
                "function",
            ),
        ];
        for (err, status, code, kind) in rows {
            let verdict = err.verdict();
            assert_eq!((verdict.status.as_u16(), verdict.code), (status, code));
            let body = err.body(&RequestId::random()).to_json();
            assert!(body.starts_with(&format!(r#"{{"error":{{"type":"{kind}","#)), "{body}");
            assert_eq!(verdict.retry_after.is_some(), matches!(status, 429 | 503), "{code}");
        }
    }
}
