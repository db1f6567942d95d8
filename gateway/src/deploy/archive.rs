//! A pushed archive for a builder on another machine. It is not sent until a builder has accepted
//! the build; until then another builder can be tried with the complete archive.

use bytes::Bytes;
use epsilon_api::body::{self, BodyError, CallBody};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::sync::oneshot;

/// A request body that stands in for the archive until a builder has accepted the build.
struct DeferredArchive {
    /// The archive's size hint.
    hint: SizeHint,
    pending: oneshot::Receiver<CallBody>,
    archive: Option<CallBody>,
    failed: ReadError,
}

/// The error with which the archive broke off, if it did: on the developer's side, not the
/// builder's.
#[derive(Clone, Debug, Default)]
pub(super) struct ReadError(Arc<Mutex<Option<BodyError>>>);

impl ReadError {
    /// The error of the archive.
    pub(super) fn take(&self) -> Option<BodyError> {
        self.0.lock().take()
    }
}

/// Passes the archive to the body that was promised for it.
pub(super) type Release = oneshot::Sender<CallBody>;

/// A body that stands in for this archive, which stays with the caller until the release.
pub(super) fn deferred(archive: &CallBody) -> (CallBody, Release, ReadError) {
    let (release, pending) = oneshot::channel();
    let failed = ReadError::default();
    let hint = archive.size_hint();
    let promised = DeferredArchive { hint, pending, archive: None, failed: failed.clone() };
    (body::boxed(promised), release, failed)
}

impl Body for DeferredArchive {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let archive = match &mut this.archive {
            Some(archive) => archive,
            None => match ready!(Pin::new(&mut this.pending).poll(cx)) {
                Ok(archive) => this.archive.insert(archive),
                Err(dropped) => return Poll::Ready(Some(Err(dropped.into()))),
            },
        };
        match ready!(Pin::new(archive).poll_frame(cx)) {
            Some(Err(err)) => {
                let text = err.to_string();
                *this.failed.0.lock() = Some(err);
                Poll::Ready(Some(Err(text.into())))
            }
            other => Poll::Ready(other),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.archive.as_ref().map_or(self.hint, |archive| archive.size_hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use http_body_util::{BodyExt, StreamBody};

    #[tokio::test]
    async fn before_handover_only_the_length_is_known() {
        let archive = body::full("archive");
        let (mut promised, release, failed) = deferred(&archive);
        assert_eq!(promised.size_hint().exact(), Some(7));
        assert!(promised.frame().now_or_never().is_none());
        release.send(archive).unwrap();
        assert_eq!(promised.collect().await.unwrap().to_bytes(), "archive");
        assert!(failed.take().is_none());
    }

    #[tokio::test]
    async fn an_archive_that_fails_is_remembered() {
        let pieces = [Ok(Frame::data(Bytes::from_static(b"x"))), Err("too much")];
        let archive = body::boxed(StreamBody::new(futures_util::stream::iter(pieces)));
        let (promised, release, failed) = deferred(&archive);
        release.send(archive).unwrap();
        assert!(promised.collect().await.is_err());
        assert_eq!(failed.take().unwrap().to_string(), "too much");
    }

    #[tokio::test]
    async fn a_request_that_is_given_up_gets_nothing() {
        let (promised, release, _) = deferred(&body::full("archive"));
        drop(release);
        assert!(promised.collect().await.is_err());
    }
}
