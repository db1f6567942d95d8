//! The answer to bytes that are not a request: an error of the platform as for any call.
//! Both listeners answer so; `epsilon_http_server` writes it and closes the connection.

use bytes::Bytes;
use epsilon_api::{
    error::CallError,
    headers::{REQUEST_ID, SERVER_TIMING},
    ids::RequestId,
};
use epsilon_http_server::Refused;
use http::{
    HeaderValue, Response,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};

/// The error for what the server could not read.
pub(crate) fn error(why: Refused) -> CallError {
    match why {
        Refused::Malformed => {
            CallError::BadRequest("the bytes received are not an HTTP/1.1 request")
        }
        Refused::HeadTooLarge => CallError::HeadTooLarge,
        Refused::TargetTooLong => CallError::TargetTooLong,
        Refused::HeadTooSlow => CallError::HeadTooSlow,
        Refused::TlsRequired => CallError::TlsRequired,
    }
}

/// The answer with this error.
pub(crate) fn answer(error: &CallError, id: &RequestId) -> Response<Bytes> {
    let mut answer = Response::new(error.body(id).to_json().into());
    *answer.status_mut() = error.verdict().status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(SERVER_TIMING, HeaderValue::from_static("total;dur=0.000"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_was_wrong_and_its_id() {
        let id = RequestId::parse("my-call-0001").unwrap();
        let answer = answer(&error(Refused::TargetTooLong), &id);
        assert_eq!(answer.status(), 414);
        assert_eq!(answer.headers()[REQUEST_ID], "my-call-0001");
        let body = std::str::from_utf8(answer.body()).unwrap();
        assert!(body.contains(r#""code":"TARGET_TOO_LONG""#), "{body}");
        assert!(body.contains(r#""request_id":"my-call-0001""#), "{body}");
    }
}
