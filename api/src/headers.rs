//! Header names that belong to the platform. A caller's headers that start with [`RESERVED_PREFIX`]
//! are dropped at the door (all but the request id), so that nobody can speak for the gateway.

use http::HeaderName;

/// Everything that starts so is the platform's.
pub const RESERVED_PREFIX: &str = "x-epsilon-";

/// The id of the call: taken from the caller when well formed, else made; on every answer.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-epsilon-request-id");

/// Milliseconds that are left of the function's `timeout` when a hop sends the call on. Whole number.
pub const DEADLINE_MS: HeaderName = HeaderName::from_static("x-epsilon-deadline-ms");

/// Set by the runtime wrapper on an answer that the platform has to replace; see [`Outcome`].
pub const OUTCOME: HeaderName = HeaderName::from_static("x-epsilon-outcome");

/// What the platform spent on a call, in the format of W3C Server-Timing.
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// What a wrapper says of a call that has no answer of the function's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The handler threw or rejected before it answered; the wrapper logged the stack.
    Threw,
}

impl Outcome {
    /// Reads the header's value; unknown values are the function's own business.
    pub fn from_header(value: &[u8]) -> Option<Self> {
        match value {
            b"threw" => Some(Self::Threw),
            _ => None,
        }
    }
}
