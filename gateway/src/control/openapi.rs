//! `GET /v1/openapi.json`: written by hand, checked against the routes by a test.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header::CONTENT_TYPE};

/// The document.
pub(super) const DOCUMENT: &str = include_str!("openapi.json");

/// The handler.
pub(super) async fn document() -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], DOCUMENT).into_response()
}
