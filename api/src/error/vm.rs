//! Why a VM did not give the function's own answer: what an agent says, and what the gateway says
//! in its place where the agent is silent or the call does not reach it. Its form on the network
//! is [`Refusal`](crate::fleet::Refusal).

use super::{CALLER_GONE, Cause, Fault, RETRY_LATER, RETRY_SOON, Verdict};
use crate::{
    body::{BodyMalformed, BodyTooLarge, BodyTooSlow},
    ids::FunctionName,
    units::Bytes,
};
use http::StatusCode;
use std::time::Duration;

/// Why a VM did not serve a call, or prepare a version.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The request's body breaks HTTP.
    #[error("the request body is not framed as HTTP requires")]
    BodyMalformed,
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
    Lost {
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

impl VmError {
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
                return Some(Self::BodyMalformed);
            }
            cause = one.source();
        }
        None
    }

    /// Status, code, fault and retry of this error.
    pub fn verdict(&self) -> Verdict {
        use Fault::{Caller, Function, Platform};
        let (status, code, fault, retry_safe, retry_after) = match self {
            Self::BodyMalformed => (StatusCode::BAD_REQUEST, "BAD_REQUEST", Caller, false, None),
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
            Self::Lost { .. } => {
                (StatusCode::BAD_GATEWAY, "FUNCTION_CRASHED", Platform, false, None)
            }
            Self::InitFailed { .. } => {
                (StatusCode::BAD_GATEWAY, "FUNCTION_INIT_FAILED", Function, false, None)
            }
            Self::NoCapacity { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "NO_CAPACITY", Platform, true, Some(RETRY_LATER))
            }
            Self::FunctionTimeout { .. } => {
                (StatusCode::GATEWAY_TIMEOUT, "FUNCTION_TIMEOUT", Function, false, None)
            }
            Self::CallerGone => (
                StatusCode::from_u16(CALLER_GONE).unwrap_or(StatusCode::BAD_REQUEST),
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
            Self::BodyTooLarge { .. } => {
                Some("the operator's setting is `gateway.max_body`".into())
            }
            Self::BodyTooSlow => Some(
                "send at least 1 KiB a second; the operator's setting is `gateway.body_timeout`, the author's `timeout`".into(),
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
            Self::Lost { .. } => {
                Some("call again if the function is safe to run twice".into())
            }
            Self::NoCapacity { .. } => Some("try again after `Retry-After`".into()),
            Self::BodyMalformed | Self::CallerGone | Self::Internal(_) => None,
        }
    }
}
