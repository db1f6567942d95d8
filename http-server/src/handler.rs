//! What a listener serves: implemented by the gateway's calls and control API, and by a member's
//! authenticated listener.

use crate::connection::Connection;
use bytes::Bytes;
use epsilon_api::{body::BodyError, chain::Chain};
use http::{Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use std::{future::Future, io, sync::Arc, time::Duration};

/// Answers requests. One handler per listener.
pub trait Handler: Clone + Send + Sync + 'static {
    /// The body of the answers.
    type Body: Body<Data = Bytes, Error: Into<BodyError>> + Send + Unpin + 'static;

    /// Answers one request. The future is dropped when the peer hangs up.
    fn handle(
        self,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;

    /// The answer to bytes that are not a request; then the connection is closed. `None`: it is
    /// closed without one.
    fn refuse(&self, why: Refused) -> Option<Response<Bytes>>;

    /// Reports a connection that could not be accepted, and the pause that follows.
    fn accept_failed(&self, error: &io::Error, pause: Duration) {
        tracing::warn!(error = %Chain(error), ?pause, "Listener cannot accept connections; retrying after a pause.");
    }
}

/// Why bytes that arrived are not a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// They are not HTTP/1.
    Malformed,
    /// The head is too long, or has too many fields.
    HeadTooLarge,
    /// The target is too long.
    TargetTooLong,
    /// The head is not complete in time.
    HeadTooSlow,
    /// Plain HTTP where TLS is required.
    TlsRequired,
}

impl Refused {
    /// By the status of hyper's parser.
    pub(crate) fn of(status: StatusCode) -> Self {
        match status {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Self::HeadTooLarge,
            StatusCode::URI_TOO_LONG => Self::TargetTooLong,
            StatusCode::REQUEST_TIMEOUT => Self::HeadTooSlow,
            _ => Self::Malformed,
        }
    }
}
