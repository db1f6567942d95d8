//! A header's value from text of ours.

use http::HeaderValue;

/// An address as a header value.
pub(crate) fn header(address: &str) -> HeaderValue {
    HeaderValue::from_str(address).unwrap_or(HeaderValue::from_static("unknown"))
}
