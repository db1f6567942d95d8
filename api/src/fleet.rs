//! Messages between the parts of a fleet: how an agent or a builder joins, how a VM reports, how a
//! call and its outcome cross the network. Types only; gateway, vm-agent and builder each implement
//! their end.
//!
//! ```text
//! member ─▶ gateway's control listener (credential; `join`: fleet token)
//!   POST /v1/fleet/join         Join → Joined
//!   POST /v1/fleet/beat         Join → Welcome, each HEARTBEAT_INTERVAL
//!   POST /v1/fleet/leave        – → 204
//! gateway ─▶ agent's listener (gateway token)
//!   GET  /v1/reports            NDJSON of VmStatus: each REPORT, and at the start and end of a drain
//!   ANY  the call's URI         the call, with the headers below → the function's answer
//!   PUT  /v1/version            Version → 204, before its first call
//!   POST /v1/ready              Version → 204 or Refusal
//!   POST /v1/fetch              Version → 204 or Refusal
//!   POST /v1/retire             VersionId → 204
//!   POST /v1/forget             FunctionName → 204
//!   POST /v1/images/remove      ImageRef → ImageRemoval
//!   POST /v1/drain, undrain     – → 204
//!   GET  /v1/logs/{function}?…  NDJSON of LogRecord
//! gateway ─▶ builder's listener (gateway token)
//!   POST /v1/builds?…           tar.gz → NDJSON of BuildMessage
//!   POST /v1/images/remove      ImageRef → 204 or ErrorBody
//!   GET  /v1/status             BuilderStatus
//! ```
//! Only calls carry [`headers::VERSION`](crate::headers::VERSION).

use crate::{
    error::VmError,
    ids::{FunctionName, GatewayId, VmId},
    redacted::Secret,
    units::{Bytes, MilliCores},
    vm::{Spent, StartPhases},
};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Version of the protocol in this file. A gateway refuses members of another one.
pub const PROTOCOL: u32 = 1;
/// How often a VM reports. Three missed reports mean that it is gone.
pub const REPORT: Duration = Duration::from_secs(1);
/// How often a member sends a heartbeat to a gateway, and receives the list of gateways.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// Kinds of members of a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum MemberKind {
    /// A VM with its agent.
    Vm,
    /// A builder.
    Builder,
}

impl MemberKind {
    /// The file in a gateway's data folder with the token that members of this kind join with.
    pub const fn token_file(self) -> &'static str {
        match self {
            Self::Vm => "fleet.token",
            Self::Builder => "builder.token",
        }
    }
}

/// Registration and heartbeat: which member, and where gateways reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// Must equal [`PROTOCOL`].
    pub protocol: u32,
    /// Kind of member.
    pub kind: MemberKind,
    /// Its id: stable across restarts.
    pub id: VmId,
    /// `host:port` of its own listener, as gateways reach it.
    pub address: String,
    /// Whether that listener uses TLS.
    pub tls: bool,
    /// Memory for instances in all; 0 for a builder.
    pub memory_bytes: Bytes,
    /// CPUs of the machine, in thousandths.
    pub cpu: MilliCores,
}

/// The answer to a [`Join`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Joined {
    /// The credential with which this member authenticates from now on, at any gateway. Never shown
    /// again.
    #[serde(with = "crate::redacted::revealed")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub credential: Secret<String>,
    /// The same as in the answer to each heartbeat.
    #[serde(flatten)]
    pub welcome: Welcome,
}

/// The answer to a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Welcome {
    /// The gateways whose tokens a member accepts.
    pub gateways: Vec<GatewayKey>,
    /// The time of the clock that gateway tokens are dated by. Unlike the wall clock it does not
    /// jump.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<Timestamp>,
}

/// One gateway and the key that its tokens are verified with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GatewayKey {
    /// The gateway.
    pub id: GatewayId,
    /// Its Ed25519 public key, 64 hexadecimal digits.
    pub public_key: String,
}

/// Why a member did not do what a gateway requested: a [`VmError`] on the network. Sent with the
/// header [`headers::REFUSAL`](crate::headers::REFUSAL), so that it cannot be taken for a
/// function's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Refusal {
    /// This member does not know the version: the gateway sends it, then the call again.
    UnknownVersion,
    /// [`VmError::BodyTooLarge`].
    BodyTooLarge {
        /// The operator's limit.
        limit: Bytes,
    },
    /// [`VmError::BodyTooSlow`].
    BodyTooSlow,
    /// [`VmError::ConcurrencyLimit`].
    ConcurrencyLimit {
        /// Instances × concurrency.
        limit: u32,
    },
    /// [`VmError::FunctionError`].
    FunctionError,
    /// [`VmError::FunctionCrashed`].
    FunctionCrashed {
        /// What was observed.
        cause: String,
    },
    /// [`VmError::InitFailed`].
    FunctionInitFailed {
        /// The code's own error.
        detail: String,
    },
    /// [`VmError::NoCapacity`].
    NoCapacity {
        /// The reason, for the log.
        cause: String,
    },
    /// [`VmError::FunctionTimeout`].
    FunctionTimeout,
    /// [`VmError::BodyMalformed`].
    BadRequest,
    /// [`VmError::Internal`].
    Internal {
        /// What happened, for the log.
        cause: String,
    },
}

impl Refusal {
    /// As sent to the gateway. Sources are joined to one line by [`Chain`](crate::chain::Chain).
    pub fn of(err: &VmError) -> Self {
        let joined = |cause: &crate::error::Cause| crate::chain::Chain(&**cause).to_string();
        match err {
            VmError::BodyMalformed => Self::BadRequest,
            VmError::BodyTooLarge { limit } => Self::BodyTooLarge { limit: *limit },
            VmError::BodyTooSlow => Self::BodyTooSlow,
            VmError::ConcurrencyLimit { limit, .. } => Self::ConcurrencyLimit { limit: *limit },
            VmError::FunctionError { .. } => Self::FunctionError,
            VmError::FunctionCrashed { cause, .. }
            | VmError::AnswerUnreadable { cause, .. }
            | VmError::Lost { cause, .. } => Self::FunctionCrashed { cause: joined(cause) },
            VmError::InitFailed { detail, .. } => {
                Self::FunctionInitFailed { detail: detail.clone() }
            }
            VmError::NoCapacity { cause, .. } => Self::NoCapacity { cause: joined(cause) },
            VmError::FunctionTimeout { .. } => Self::FunctionTimeout,
            VmError::Internal(cause) => Self::Internal { cause: joined(cause) },
            VmError::CallerGone => Self::Internal { cause: err.to_string() },
        }
    }

    /// As the gateway handles it. `timeout` is the function's own.
    pub fn into_error(self, function: FunctionName, timeout: Duration) -> VmError {
        match self {
            Self::UnknownVersion => VmError::NoCapacity {
                function,
                cause: "the VM does not know the version yet".into(),
            },
            Self::BadRequest => VmError::BodyMalformed,
            Self::BodyTooLarge { limit } => VmError::BodyTooLarge { limit },
            Self::BodyTooSlow => VmError::BodyTooSlow,
            Self::ConcurrencyLimit { limit } => VmError::ConcurrencyLimit { function, limit },
            Self::FunctionError => VmError::FunctionError { function },
            Self::FunctionCrashed { cause } => {
                VmError::FunctionCrashed { function, cause: cause.into() }
            }
            Self::FunctionInitFailed { detail } => VmError::InitFailed { function, detail },
            Self::NoCapacity { cause } => VmError::NoCapacity { function, cause: cause.into() },
            Self::FunctionTimeout => VmError::FunctionTimeout { function, timeout },
            Self::Internal { cause } => VmError::Internal(cause.into()),
        }
    }

    /// Its HTTP status. Informative only; the code decides.
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

/// [`Spent`] as the value of the header [`headers::SPENT`](crate::headers::SPENT): microseconds of
/// queue and exec, then, after a start, of pull, layers, cell, create, start and init: `12;340` or
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

/// Parses the text of [`write_spent`]; `None` for anything else.
pub fn read_spent(text: &str) -> Option<Spent> {
    let mut numbers = text.split(';').map(|part| part.parse().ok().map(Duration::from_micros));
    let queue = numbers.next()??;
    let exec = numbers.next()??;
    let rest: Vec<Duration> = numbers.collect::<Option<_>>()?;
    let start = match rest[..] {
        [] => None,
        [pull, layers, cell, create, start, init] => {
            Some(StartPhases { pull, layers, cell, create, start, init })
        }
        // From an agent without cells.
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
            VmError::BodyMalformed,
            VmError::BodyTooLarge { limit: Bytes(7) },
            VmError::BodyTooSlow,
            VmError::ConcurrencyLimit { function: function(), limit: 3 },
            VmError::FunctionError { function: function() },
            VmError::FunctionCrashed { function: function(), cause: "exit 7".into() },
            VmError::InitFailed { function: function(), detail: "boom".into() },
            VmError::NoCapacity { function: function(), cause: "full".into() },
            VmError::FunctionTimeout { function: function(), timeout },
            VmError::Internal("bug".into()),
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
