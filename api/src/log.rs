//! One line of a function's log: what `epsilon logs` prints and what the agent stores on disk as a
//! line of JSON.

use crate::ids::{FunctionName, InstanceId, RequestId, VersionNumber, VmId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Severity of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LogRecord {
    /// When it was written.
    pub time: Timestamp,
    /// Severity.
    pub level: Level,
    /// The function that wrote it.
    pub function: FunctionName,
    /// Its version.
    pub version: VersionNumber,
    /// The instance that wrote it.
    pub instance: InstanceId,
    /// The call that wrote it; none for lines written while loading or between calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// The text; several lines for a stack.
    pub message: String,
    /// The VM where it was written: filled in for readers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmId>,
    /// The position of its end in that VM's log of the function: filled in for readers. A line that
    /// could not be stored has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, pattern = "^[0-9]+-[0-9]+$"))]
    pub position: Option<LogPosition>,
}

/// A position in one VM's log of a function, just after a line; written `1796000000-512`. Later
/// lines have greater positions. Opaque to readers: times are written by code, and neither unique
/// nor in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogPosition {
    /// Number of the log file.
    pub segment: u64,
    /// Bytes from the file's start.
    pub offset: u64,
}

/// A position and its VM; written `VM:1796000000-512`. A reader that resumes sends one for each VM
/// that it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogCursor {
    /// The VM.
    pub vm: VmId,
    /// Lines after it are new.
    pub position: LogPosition,
}

/// A text that is not a position or cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cursor is a line's `vm` and `position`, joined by `:`")]
pub struct InvalidCursor;

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.segment, self.offset)
    }
}

impl FromStr for LogPosition {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let (segment, offset) = text.split_once('-').ok_or(InvalidCursor)?;
        let number = |text: &str| text.parse().map_err(|_| InvalidCursor);
        Ok(Self { segment: number(segment)?, offset: number(offset)? })
    }
}

impl TryFrom<String> for LogPosition {
    type Error = InvalidCursor;

    fn try_from(text: String) -> Result<Self, InvalidCursor> {
        text.parse()
    }
}

impl From<LogPosition> for String {
    fn from(position: LogPosition) -> Self {
        position.to_string()
    }
}

impl fmt::Display for LogCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.vm, self.position)
    }
}

impl FromStr for LogCursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let (vm, position) = text.split_once(':').ok_or(InvalidCursor)?;
        let vm = VmId::parse(vm).map_err(|_| InvalidCursor)?;
        Ok(Self { vm, position: position.parse()? })
    }
}

/// Which lines a reader requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Only lines of this call.
    pub request_id: Option<RequestId>,
    /// Go on with new lines after the stored ones.
    pub follow: bool,
    /// At most this many of the newest stored lines; `None`: all of them.
    pub tail: Option<usize>,
    /// Only lines after this position, and all of them: `tail` is ignored then.
    pub after: Option<LogPosition>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_as_they_are_written() {
        for text in ["vm-1:1796000000-512", "a:0-0", "a:1-18446744073709551615"] {
            assert_eq!(text.parse::<LogCursor>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "vm-1",
            "vm-1:",
            ":1-2",
            "vm-1:1",
            "vm-1:1-",
            "vm-1:1--2",
            "VM:1-2",
            "a:1-18446744073709551616",
        ] {
            assert_eq!(text.parse::<LogCursor>(), Err(InvalidCursor), "{text}");
        }
    }
}
