//! The current step of the gateway's start, for requests to the control API before it serves:
//! `epsilon up` builds the runtime base at its first start, which takes minutes. Set by the program
//! that starts the gateway, read by each request of the control API.

use super::{error::ApiError, query::data};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use parking_lot::Mutex;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// Seconds after which to retry.
const RETRY: HeaderValue = HeaderValue::from_static("2");

/// The answer of `/healthz` during the start, in its envelope.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HealthStarting)]
pub(super) struct Starting {
    /// Always `starting`.
    status: &'static str,
    /// The current step, for people.
    step: String,
}

/// A start. Cheap to clone; all clones share the state.
#[derive(Clone, Debug)]
pub struct Startup(Arc<Mutex<Option<Arc<str>>>>);

impl Startup {
    /// A start that has begun.
    pub(crate) fn begin() -> Self {
        Self(Arc::new(Mutex::new(Some("its parts are starting".into()))))
    }

    /// Sets the current step, as a person reads it after "the gateway is starting: ".
    pub fn step(&self, what: &str) {
        if let Some(step) = &mut *self.0.lock() {
            *step = what.into();
        }
    }

    /// The start is complete: the gateway serves.
    pub(crate) fn over(&self) {
        *self.0.lock() = None;
    }

    /// The answer for this path during the start.
    pub(crate) fn answer(&self, path: &str) -> Option<Response> {
        let step = self.0.lock().clone()?;
        let mut response = if path == "/healthz" {
            let health = Starting { status: "starting", step: step.to_string() };
            (StatusCode::SERVICE_UNAVAILABLE, axum::Json(data(health))).into_response()
        } else {
            let message = format!("the gateway is starting: {step}");
            let starting = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "STARTING", message);
            starting.hint("try again in a moment").into_response()
        };
        response.headers_mut().insert(RETRY_AFTER, RETRY);
        Some(response)
    }
}
