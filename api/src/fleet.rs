//! What the parts of a fleet say to each other: how an agent or a builder joins, how a VM reports, how a call
//! and its outcome cross the wire. Types only; gateway, vm-agent and builder each speak their end of it.
//!
//! ```text
//! agent ──▶ gateway's control listener   POST /v1/fleet/join    fleet token       Join   → Joined
//!                                        POST /v1/fleet/beat    credential        Join   → Welcome   (each BEAT)
//!                                        POST /v1/fleet/leave   credential        –      → 204
//! gateway ──▶ agent's listener           GET  /v1/reports       pass    NDJSON of VmStatus, one each REPORT and at
//!                                                               once when the VM begins or ends a drain
//!                                        ANY  <the call's URI>  pass + the headers below    the function's answer
//!                                        PUT  /v1/version       pass    Version (before its first call)   → 204
//!                                        POST /v1/ready         pass    Version           → 204 or Refusal
//!                                        POST /v1/fetch         pass    Version           → 204 or Refusal
//!                                        POST /v1/retire        pass    VersionId         → 204
//!                                        POST /v1/forget        pass    FunctionName      → 204
//!                                        POST /v1/images/remove pass    ImageRef          → ImageRemoval
//!                                        POST /v1/drain|undrain pass    –                 → 204
//!                                        GET  /v1/logs/{function}?… pass                  NDJSON of LogRecord
//! gateway ──▶ builder's listener         POST /v1/builds?…      pass    tar.gz            NDJSON of BuildNews
//!                                        POST /v1/images/remove pass    ImageRef          → 204 or ErrorBody
//!                                        GET  /v1/status        pass                      BuilderStatus
//! ```
//! A call is told from everything else by its [`headers::VERSION`](crate::headers::VERSION).

use crate::{
    error::CallError,
    ids::{FunctionName, GatewayId, VmId},
    redacted::Secret,
    units::{Bytes, MilliCores},
    vm::{Spent, StartPhases},
};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The form of everything in this file. A gateway refuses to let in what speaks another one.
pub const PROTOCOL: u32 = 1;
/// How often a VM reports. Three reports missed mean that it is gone.
pub const REPORT: Duration = Duration::from_secs(1);
/// How often a member tells a gateway that it is still there, and learns which gateways there are.
pub const BEAT: Duration = Duration::from_secs(5);

/// What joins a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberKind {
    /// A VM with its agent.
    Vm,
    /// A builder.
    Builder,
}

impl MemberKind {
    /// The file in a gateway's data folder that holds the token with which one of this kind joins.
    pub const fn token_file(self) -> &'static str {
        match self {
            Self::Vm => "fleet.token",
            Self::Builder => "builder.token",
        }
    }
}

/// "Here I am": who joins, and where gateways reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// What it is.
    pub kind: MemberKind,
    /// Its id: stable across restarts.
    pub id: VmId,
    /// `host:port` of its own listener, as gateways reach it.
    pub address: String,
    /// Whether that listener speaks TLS.
    pub tls: bool,
    /// Memory that its instances may have in all; 0 for a builder.
    pub memory_bytes: Bytes,
    /// Processors of the machine.
    pub cpu: MilliCores,
}

/// The answer to a [`Join`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// What this member proves itself with from now on, at any gateway. Never shown again.
    #[serde(with = "crate::redacted::revealed")]
    pub credential: Secret<String>,
    /// As in each later beat.
    #[serde(flatten)]
    pub welcome: Welcome,
}

/// The answer to a beat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The gateways whose passes a member takes.
    pub gateways: Vec<GatewayKey>,
    /// What time it is by the clock that passes are dated by. It does not jump, as the wall clock may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<Timestamp>,
}

/// One gateway and how to recognise its passes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayKey {
    /// Which.
    pub id: GatewayId,
    /// Its Ed25519 public key, 64 hexadecimal digits.
    pub public_key: String,
}

/// Why a member did not do what a gateway asked: a [`CallError`] on the wire. Sent with the header
/// [`headers::REFUSAL`](crate::headers::REFUSAL), so that it cannot be taken for a function's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Refusal {
    /// This member does not know the version: send it, then the call again.
    UnknownVersion,
    /// [`CallError::BodyTooLarge`].
    BodyTooLarge {
        /// The operator's limit.
        limit: Bytes,
    },
    /// [`CallError::BodyTooSlow`].
    BodyTooSlow,
    /// [`CallError::ConcurrencyLimit`].
    ConcurrencyLimit {
        /// Instances × concurrency.
        limit: u32,
    },
    /// [`CallError::FunctionError`].
    FunctionError,
    /// [`CallError::FunctionCrashed`].
    FunctionCrashed {
        /// What was seen.
        cause: String,
    },
    /// [`CallError::InitFailed`].
    FunctionInitFailed {
        /// The code's own error.
        detail: String,
    },
    /// [`CallError::NoCapacity`].
    NoCapacity {
        /// Why.
        cause: String,
    },
    /// [`CallError::FunctionTimeout`].
    FunctionTimeout,
    /// [`CallError::BadRequest`]: the body broke HTTP on its way.
    BadRequest,
    /// [`CallError::Internal`].
    Internal {
        /// What happened.
        cause: String,
    },
}

impl Refusal {
    /// For the wire. The cause of causes is told in one line, by [`Chain`](crate::chain::Chain).
    pub fn of(err: &CallError) -> Self {
        let told = |cause: &crate::error::Cause| crate::chain::Chain(&**cause).to_string();
        match err {
            CallError::BadRequest(_) => Self::BadRequest,
            CallError::BodyTooLarge { limit } => Self::BodyTooLarge { limit: *limit },
            CallError::BodyTooSlow => Self::BodyTooSlow,
            CallError::ConcurrencyLimit { limit, .. } => Self::ConcurrencyLimit { limit: *limit },
            CallError::FunctionError { .. } => Self::FunctionError,
            CallError::FunctionCrashed { cause, .. }
            | CallError::AnswerUnreadable { cause, .. }
            | CallError::VmLost { cause, .. } => Self::FunctionCrashed { cause: told(cause) },
            CallError::InitFailed { detail, .. } => {
                Self::FunctionInitFailed { detail: detail.clone() }
            }
            CallError::NoCapacity { cause, .. } => Self::NoCapacity { cause: told(cause) },
            CallError::FunctionTimeout { .. } => Self::FunctionTimeout,
            CallError::Internal(cause) => Self::Internal { cause: told(cause) },
            CallError::FunctionNotFound(_)
            | CallError::VersionNotFound { .. }
            | CallError::VersionGuarded { .. }
            | CallError::HeadTooLarge
            | CallError::TargetTooLong
            | CallError::HeadTooSlow
            | CallError::TlsRequired
            | CallError::GatewayFull
            | CallError::CallerGone => Self::Internal { cause: err.to_string() },
        }
    }

    /// As the gateway goes on with it. `timeout` is the function's own.
    pub fn into_error(self, function: FunctionName, timeout: Duration) -> CallError {
        match self {
            Self::UnknownVersion => CallError::NoCapacity {
                function,
                cause: "the VM does not know the version yet".into(),
            },
            Self::BadRequest => {
                CallError::BadRequest("the request's body is not framed as HTTP asks")
            }
            Self::BodyTooLarge { limit } => CallError::BodyTooLarge { limit },
            Self::BodyTooSlow => CallError::BodyTooSlow,
            Self::ConcurrencyLimit { limit } => CallError::ConcurrencyLimit { function, limit },
            Self::FunctionError => CallError::FunctionError { function },
            Self::FunctionCrashed { cause } => {
                CallError::FunctionCrashed { function, cause: cause.into() }
            }
            Self::FunctionInitFailed { detail } => CallError::InitFailed { function, detail },
            Self::NoCapacity { cause } => CallError::NoCapacity { function, cause: cause.into() },
            Self::FunctionTimeout => CallError::FunctionTimeout { function, timeout },
            Self::Internal { cause } => CallError::Internal(cause.into()),
        }
    }

    /// The status that it travels with. Only for people who look at the wire; the code decides.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::UnknownVersion => StatusCode::PRECONDITION_REQUIRED,
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::ConcurrencyLimit { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::FunctionError | Self::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            Self::FunctionCrashed { .. } | Self::FunctionInitFailed { .. } => {
                StatusCode::BAD_GATEWAY
            }
            Self::NoCapacity { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::FunctionTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

/// [`Spent`] as the value of the header [`headers::SPENT`](crate::headers::SPENT): microseconds of queue and exec,
/// then, after a start, of pull, layers, cell, create, start and init: `12;340` or
/// `12;340;0;0;0;45000;110000;30000`.
pub fn write_spent(spent: &Spent) -> String {
    let us = |duration: Duration| duration.as_micros();
    let mut text = format!("{};{}", us(spent.queue), us(spent.exec));
    if let Some(start) = &spent.start {
        let StartPhases { pull, layers, cell, create, start, init } = *start;
        for phase in [pull, layers, cell, create, start, init] {
            text.push(';');
            text.push_str(&us(phase).to_string());
        }
    }
    text
}

/// Reads [`write_spent`]'s text; `None` for anything else.
pub fn read_spent(text: &str) -> Option<Spent> {
    let mut numbers = text.split(';').map(|part| part.parse().ok().map(Duration::from_micros));
    let (queue, exec) = (numbers.next()??, numbers.next()??);
    let rest: Vec<Duration> = numbers.collect::<Option<_>>()?;
    let start = match rest[..] {
        [] => None,
        [pull, layers, cell, create, start, init] => {
            Some(StartPhases { pull, layers, cell, create, start, init })
        }
        // Of a VM that knows no cells.
        [pull, create, start, init] => {
            Some(StartPhases { pull, create, start, init, ..StartPhases::default() })
        }
        _ => return None,
    };
    Some(Spent { queue, start, exec })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_verdict_across_the_wire() {
        let function = || FunctionName::parse("pay").unwrap();
        let timeout = Duration::from_secs(3);
        for err in [
            CallError::BadRequest("no"),
            CallError::BodyTooLarge { limit: Bytes(7) },
            CallError::BodyTooSlow,
            CallError::ConcurrencyLimit { function: function(), limit: 3 },
            CallError::FunctionError { function: function() },
            CallError::FunctionCrashed { function: function(), cause: "exit 7".into() },
            CallError::InitFailed { function: function(), detail: "boom".into() },
            CallError::NoCapacity { function: function(), cause: "full".into() },
            CallError::FunctionTimeout { function: function(), timeout },
            CallError::Internal("bug".into()),
        ] {
            let refusal = Refusal::of(&err);
            let text = serde_json::to_string(&refusal).unwrap();
            let read: Refusal = serde_json::from_str(&text).unwrap();
            assert_eq!(read, refusal, "{text}");
            assert_eq!(read.into_error(function(), timeout).verdict(), err.verdict(), "{text}");
        }
    }

    #[test]
    fn what_was_spent_survives_the_header() {
        let ms = Duration::from_millis;
        let start = StartPhases {
            layers: ms(2),
            create: ms(45),
            start: ms(110),
            init: ms(30),
            ..StartPhases::default()
        };
        let old = read_spent("12;3000;0;45000;110000;30000").unwrap();
        assert_eq!(old.start.unwrap().total(), ms(185));
        for start in [None, Some(start)] {
            let spent = Spent { queue: Duration::from_micros(12), start, exec: ms(3) };
            assert_eq!(read_spent(&write_spent(&spent)), Some(spent));
        }
        for wrong in ["", "1", "1;x", "1;2;3", "1;2;3;4;5;6;7;8;9", "-1;2"] {
            assert_eq!(read_spent(wrong), None, "{wrong}");
        }
    }
}
