//! The body of a member's answer. Its connection returns to the pool once the last byte was read,
//! and is closed if the reader stops before that, which is how the member learns of it.

use super::Link;
use super::error::LinkError;
use bytes::Bytes;
use epsilon_api::body::BodyError;
use epsilon_fleet_link::connection::Connection;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

/// A response body that owns its connection.
#[derive(Debug)]
pub(crate) struct PooledBody {
    incoming: Incoming,
    /// `None` once the connection was returned or dropped; without a link, it is not reused.
    held: Option<(Connection, Option<Arc<Link>>)>,
}

impl PooledBody {
    pub(crate) fn new(incoming: Incoming, connection: Connection, link: Arc<Link>) -> Self {
        let mut body = Self { incoming, held: Some((connection, Some(link))) };
        body.release_if_complete();
        body
    }

    /// A body whose connection is closed afterwards.
    pub(crate) fn once(incoming: Incoming, connection: Connection) -> Self {
        Self { incoming, held: Some((connection, None)) }
    }

    fn release_if_complete(&mut self) {
        if self.incoming.is_end_stream() {
            self.release();
        }
    }

    fn release(&mut self) {
        if let Some((connection, Some(link))) = self.held.take() {
            link.release(connection);
        }
    }
}

impl Body for PooledBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
            Some(Ok(frame)) => {
                self.release_if_complete();
                Poll::Ready(Some(Ok(frame)))
            }
            None => {
                self.release();
                Poll::Ready(None)
            }
            Some(Err(err)) => {
                self.held = None;
                Poll::Ready(Some(Err(LinkError::Disconnected(err.into()).into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// The whole of a small answer.
pub(crate) async fn text(body: PooledBody, limit: usize) -> Result<Bytes, LinkError> {
    let read = Limited::new(body, limit).collect().await;
    Ok(read.map_err(|err| LinkError::Protocol(err.to_string()))?.to_bytes())
}
