//! Header names that belong to the platform. A caller's headers that start with [`RESERVED_PREFIX`]
//! are dropped by the listener (all but the request id), so that no caller can speak for the
//! gateway.

use crate::ids::RequestId;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Prefix of all headers of the platform.
pub const RESERVED_PREFIX: &str = "x-epsilon-";

/// The id of the call: taken from the caller when well formed, else generated; on every answer.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-epsilon-request-id");

/// The sender's id for its request if it is well formed, else a fresh one.
pub fn request_id(headers: &HeaderMap) -> RequestId {
    headers
        .get(REQUEST_ID)
        .and_then(|value| RequestId::parse(value.to_str().ok()?).ok())
        .unwrap_or_else(RequestId::random)
}

/// On every answer of a control listener: [`CONTROL`]. Functions cannot answer with it, because a
/// gateway drops headers with [`RESERVED_PREFIX`] from their answers; so clients check for it
/// before they send a key.
pub const LISTENER: HeaderName = HeaderName::from_static("x-epsilon-listener");

/// The value of [`LISTENER`].
pub const CONTROL: HeaderValue = HeaderValue::from_static("control");

/// Milliseconds that are left of the function's `timeout` when a hop sends the call on. Whole
/// number.
pub const DEADLINE_MS: HeaderName = HeaderName::from_static("x-epsilon-deadline-ms");

/// From a caller to the gateway: the admin key, where versions are called by their address and that
/// takes one (`gateway.version_addresses`). Functions never see it.
pub const KEY: HeaderName = HeaderName::from_static("x-epsilon-key");

/// From a gateway to a member of its fleet: the gateway token, signed by the gateway.
pub const GATEWAY_TOKEN: HeaderName = HeaderName::from_static("x-epsilon-pass");

/// From a gateway to an agent: which version a call is for, as `name@3`. Only calls carry it.
pub const VERSION: HeaderName = HeaderName::from_static("x-epsilon-version");

/// From a gateway to an agent: `0` when the gateway can send the call to another VM, so that this
/// one refuses it at once instead of letting it wait. Absent: it may wait.
pub const MAY_WAIT: HeaderName = HeaderName::from_static("x-epsilon-may-wait");

/// From an agent to a gateway, on an answer: time spent in the VM; see
/// [`crate::fleet::write_spent`].
pub const SPENT: HeaderName = HeaderName::from_static("x-epsilon-spent");

/// From a member to a gateway: the body is a [`crate::fleet::Refusal`], not a function's answer.
pub const REFUSAL: HeaderName = HeaderName::from_static("x-epsilon-refusal");

/// Set by the runtime wrapper on an answer that the platform has to replace; see [`Outcome`].
pub const OUTCOME: HeaderName = HeaderName::from_static("x-epsilon-outcome");

/// From a gateway to a function that is called below its name (`/{function}/…`): the prefix taken
/// off the path, so that the code can make links to itself. Absent where the function has a host of
/// its own.
pub const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// From a gateway to an agent: a [`RawTarget`]. Only calls whose target has one carry it.
pub const TARGET: HeaderName = HeaderName::from_static("x-epsilon-target");

/// A request's target as the caller wrote it, where `http::Uri` cannot hold it and has it escaped:
/// an extension of the request, written to the function instead of the escaped target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawTarget(pub HeaderValue);

/// Time spent by the platform on a call, in the format of W3C Server-Timing.
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// What a wrapper reports of a call without an answer of the function's own.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_id_is_taken_over() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_static("my-call-0001"));
        assert_eq!(request_id(&headers).as_str(), "my-call-0001");
        headers.insert(REQUEST_ID, HeaderValue::from_static("a b\"<x>;"));
        assert_eq!(request_id(&headers).as_str().len(), 32);
    }
}
