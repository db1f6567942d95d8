//! One line of a function's log: what `epsilon logs` prints and what the agent keeps on disk as a
//! line of JSON.

use crate::ids::{FunctionName, InstanceId, RequestId, VersionNumber};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How loud a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// `console.debug`, `console.trace`.
    Debug,
    /// `console.log`, `console.info`, raw standard output.
    Info,
    /// `console.warn`.
    Warn,
    /// `console.error`, raw standard error, errors of the platform about this function.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        })
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// When it was written.
    pub time: Timestamp,
    /// How loud.
    pub level: Level,
    /// Whose.
    pub function: FunctionName,
    /// Which build of it.
    pub version: VersionNumber,
    /// Which container.
    pub instance: InstanceId,
    /// The call that wrote it; none for lines written while loading or between calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// The text; several lines for a stack.
    pub message: String,
}

/// Which lines a reader wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Only lines of this call.
    pub request_id: Option<RequestId>,
    /// Go on with new lines after the kept ones.
    pub follow: bool,
    /// At most this many of the newest kept lines; `None` is all that are kept.
    pub tail: Option<usize>,
}
