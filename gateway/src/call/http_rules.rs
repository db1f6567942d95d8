//! After the caller's address, before the lookup: whether the request may continue. The rules of
//! HTTP that hyper leaves to a proxy, and the operator's limit on bodies. Pure.
//!
//! hyper has already refused folded headers, spaces before colons, conflicting or invalid lengths
//! and unknown transfer codings. With both `Content-Length` and `Transfer-Encoding` it drops the
//! length and closes the connection after the answer, so that no second request can be smuggled
//! after the body.

use epsilon_api::{error::CallError, headers::REQUEST_ID, ids::RequestId, units::Bytes};
use http::{
    HeaderMap, Method, Request, Uri, Version,
    header::{EXPECT, HOST, TRANSFER_ENCODING},
};
use http_body::Body;

/// The caller's id for its call if it is well formed, else a fresh one.
pub(crate) fn request_id(headers: &HeaderMap) -> RequestId {
    headers
        .get(REQUEST_ID)
        .and_then(|value| RequestId::parse(value.to_str().ok()?).ok())
        .unwrap_or_else(RequestId::random)
}

/// Whether the caller holds its body back until it receives `100 Continue`.
pub(crate) fn waits_for_continue(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// hyper removes `chunked` if it is the last transfer coding. Codings below it would reach the
/// function as part of the body, without a header that names them.
pub(crate) fn coding(headers: &HeaderMap) -> Result<(), CallError> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(CallError::BadRequest("this gateway supports no transfer coding but `chunked`")),
    }
}

/// Checks the head and returns the host that the caller requested.
pub(crate) fn host<B>(request: &Request<B>) -> Result<&str, CallError> {
    if *request.method() == Method::CONNECT {
        return Err(CallError::BadRequest("this gateway does not support CONNECT"));
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host
            .to_str()
            .ok()
            .filter(|host| host.bytes().all(is_host_byte))
            .ok_or(CallError::BadRequest("the `Host` header is not a host"))?,
        (Some(_), Some(_)) => {
            return Err(CallError::BadRequest("the request has more than one `Host` header"));
        }
        (None, _) if request.version() == Version::HTTP_11 => {
            return Err(CallError::BadRequest("the request has no `Host` header"));
        }
        (None, _) => "",
    };
    absolute_form_agrees(request.uri(), host)?;
    Ok(host)
}

/// The host of a target such as `http://host/path` must match the `Host` header: two readers of one
/// request must not disagree about its destination.
fn absolute_form_agrees(uri: &Uri, host: &str) -> Result<(), CallError> {
    match uri.authority() {
        Some(authority) if !authority.as_str().eq_ignore_ascii_case(host) => {
            Err(CallError::BadRequest("the request's target and its `Host` header disagree"))
        }
        Some(_) | None => Ok(()),
    }
}

pub(crate) fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']')
}

/// Refuses a body whose declared length is too large. A body without a length is cut while it
/// streams.
pub(crate) fn body_size(body: &impl Body, limit: Bytes) -> Result<(), CallError> {
    if body.size_hint().lower() > limit.get() {
        return Err(CallError::BodyTooLarge { limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;

    fn request(version: Version, uri: &str, hosts: &[&str]) -> Request<()> {
        let mut request = Request::builder().version(version).uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn hosts() {
        use Version as V;
        for (version, uri, hosts, fine) in [
            (V::HTTP_11, "/x", &["a.b:80"][..], true),
            (V::HTTP_11, "/x", &["[::1]:80"], true),
            (V::HTTP_11, "/x", &[], false),
            (V::HTTP_10, "/x", &[], true),
            (V::HTTP_11, "/x", &["a", "a"], false),
            (V::HTTP_10, "/x", &["a", "b"], false),
            (V::HTTP_11, "/x", &["a/b"], false),
            (V::HTTP_11, "/x", &["u@a"], false),
            (V::HTTP_11, "/x", &["a b"], false),
            (V::HTTP_11, "http://a/x", &["a"], true),
            (V::HTTP_11, "http://A/x", &["a"], true),
            (V::HTTP_11, "http://a/x", &["b"], false),
            (V::HTTP_11, "http://u@a/x", &["a"], false),
        ] {
            let request = request(version, uri, hosts);
            assert_eq!(host(&request).is_ok(), fine, "{version:?} {uri} {hosts:?}");
        }
    }

    #[test]
    fn only_a_well_formed_id_is_taken_over() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, "my-call-0001".parse().unwrap());
        assert_eq!(request_id(&headers).as_str(), "my-call-0001");
        headers.insert(REQUEST_ID, "a b\"<x>;".parse().unwrap());
        assert_eq!(request_id(&headers).as_str().len(), 32);
    }

    #[test]
    fn a_declared_length_over_the_limit_is_refused() {
        let body = Full::new(bytes::Bytes::from_static(b"12345"));
        assert!(body_size(&body, Bytes(5)).is_ok());
        assert!(matches!(body_size(&body, Bytes(4)), Err(CallError::BodyTooLarge { .. })));
    }
}
