//! The body of a member's answer. Its connection returns to the pool once the last byte was read,
//! and is closed if the reader stops before that, which is how the member learns of it.

use super::Link;
use super::error::LinkError;
use bytes::Bytes;
use epsilon_api::body::BodyError;
use epsilon_fleet_link::connection::Connection;
use epsilon_http_server::observed::{Observed, Observer};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use std::sync::Arc;

/// A response body that owns its connection.
pub(crate) type PooledBody = Observed<Incoming, Held>;

/// The connection of an answer.
#[derive(Debug)]
pub(crate) struct Held {
    /// `None` once the connection was returned or dropped; without a link, it is not reused.
    connection: Option<(Connection, Option<Arc<Link>>)>,
}

/// A body whose connection is used again.
pub(crate) fn pooled(incoming: Incoming, connection: Connection, link: Arc<Link>) -> PooledBody {
    Observed::over(incoming, Held { connection: Some((connection, Some(link))) })
}

/// A body whose connection is closed afterwards.
pub(crate) fn once(incoming: Incoming, connection: Connection) -> PooledBody {
    Observed::over(incoming, Held { connection: Some((connection, None)) })
}

impl Observer<Incoming> for Held {
    fn end(&mut self) {
        if let Some((connection, Some(link))) = self.connection.take() {
            link.release(connection);
        }
    }

    fn failed(&mut self, err: hyper::Error) -> BodyError {
        self.connection = None;
        LinkError::Disconnected(err.into()).into()
    }
}

/// The whole of a small answer.
pub(crate) async fn text(body: PooledBody, limit: usize) -> Result<Bytes, LinkError> {
    let read = Limited::new(body, limit).collect().await;
    Ok(read.map_err(|err| LinkError::Protocol(err.to_string()))?.to_bytes())
}
