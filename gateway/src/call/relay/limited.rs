//! The caller's body on its way to a function: counted, cut at the operator's limit or when it is
//! too slow, and drained when the rest is not needed.

use super::{
    headers,
    pace::{Pace, PaceLimits},
};
use bytes::Bytes;
use epsilon_api::{
    body::{BodyError, BodyMalformed, BodyProgress, BodyTooLarge, BodyTooSlow},
    units,
};
use http_body::{Body, Frame, SizeHint};
use prometheus::IntCounter;
use std::{
    error::Error,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

/// How long the rest of an unwanted body is read and discarded, so that its sender sees the answer
/// and not a broken connection.
pub(crate) const LINGER: Duration = Duration::from_secs(10);
/// Time that a caller gets to send the rest of its body once a call waits for it; received bytes
/// earn more.
const CALL_GRACE: Duration = Duration::from_secs(2);

/// A body that fails with [`BodyTooLarge`] beyond the limit, and with [`BodyTooSlow`] if it arrives
/// too slowly.
#[derive(Debug)]
pub(crate) struct Limited<B: UploadBody> {
    /// `None` once it failed or is being drained.
    inner: Option<B>,
    seen: u64,
    limit: units::Bytes,
    /// How long the unwanted rest is read before the connection is closed.
    linger: Duration,
    /// The caller waits for `100 Continue` and the body was not read yet: it will not send an
    /// unwanted body.
    waits: bool,
    /// Counter of received bytes.
    counter: IntCounter,
    pace: Pace,
    /// Set once a call waits for the body.
    progress: Option<BodyProgress>,
}

/// A body that can be drained in a task of its own.
pub(crate) trait UploadBody:
    Body<Data = Bytes, Error: Into<BodyError>> + Send + Unpin + 'static
{
}
impl<B: Body<Data = Bytes, Error: Into<BodyError>> + Send + Unpin + 'static> UploadBody for B {}

impl<B: UploadBody> Limited<B> {
    pub(crate) fn new(
        inner: B,
        limit: units::Bytes,
        linger: Duration,
        waits: bool,
        counter: IntCounter,
        pace: PaceLimits,
    ) -> Self {
        let inner = Some(inner);
        let pace = Pace::new(pace);
        Self { inner, seen: 0, limit, linger, waits, counter, pace, progress: None }
    }

    /// Called when a call begins to wait for the rest of the body; `received` bytes were read
    /// before.
    pub(crate) fn begin_call(&mut self, received: u64) -> BodyProgress {
        self.pace.begin_call(received, CALL_GRACE);
        self.progress.insert(BodyProgress::default()).clone()
    }

    /// No byte is available.
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(progress) = &self.progress {
            progress.awaits(true);
            if progress.is_answered() {
                return Poll::Pending;
            }
        }
        ready!(self.pace.poll_wait(cx));
        self.inner = None; // too slow for the call is too slow for draining
        Poll::Ready(Some(Err(Box::new(BodyTooSlow))))
    }

    fn completed(&self) {
        if let Some(progress) = &self.progress {
            progress.completed();
        }
    }

    /// Drains the body without storing it. When a connection is closed while the peer sends, the
    /// kernel resets it and discards an answer that the peer has not read yet; so the peer may
    /// finish sending, within a time limit.
    fn drain(&mut self) {
        let Some(mut rest) = self.inner.take() else { return };
        if rest.is_end_stream() || self.waits || self.linger.is_zero() {
            return;
        }
        // There is no runtime only while the process ends; then no peer sends any more.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let linger = self.linger;
        runtime.spawn(async move {
            let read_on = async {
                use http_body_util::BodyExt;
                while let Some(Ok(_)) = rest.frame().await {}
            };
            // The body is dropped after the timeout, too; if more of it is unread, hyper closes the
            // connection.
            let _ = tokio::time::timeout(linger, read_on).await;
        });
    }
}

/// Distinguishes a body that violates HTTP, which is the caller's fault and gets an answer, from
/// one that broke off, whose caller is gone.
fn classify_body_error(err: BodyError) -> BodyError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&*err);
    while let Some(one) = cause {
        // The error kind that hyper's chunk decoder uses for invalid sizes, extensions and
        // trailers.
        let kind = one.downcast_ref::<io::Error>().map(io::Error::kind);
        if let Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) = kind {
            return Box::new(BodyMalformed);
        }
        cause = one.source();
    }
    err
}

impl<B: UploadBody> Body for Limited<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.waits = false;
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let mut frame = match Pin::new(inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(err))) => {
                return Poll::Ready(Some(Err(classify_body_error(err.into()))));
            }
            Poll::Ready(None) => {
                self.completed();
                return Poll::Ready(None);
            }
            Poll::Pending => return self.poll_wait(cx),
        };
        if let Some(trailers) = frame.trailers_mut() {
            headers::clean_trailers(trailers);
        }
        let size = frame.data_ref().map_or(0, |data| data.len() as u64);
        self.seen += size;
        if let Some(progress) = &self.progress {
            progress.awaits(false);
        }
        self.pace.received(size);
        if self.seen > self.limit.get() {
            self.drain();
            return Poll::Ready(Some(Err(Box::new(BodyTooLarge { limit: self.limit }))));
        }
        if self.is_end_stream() {
            self.completed();
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B: UploadBody> Drop for Limited<B> {
    fn drop(&mut self) {
        self.counter.inc_by(self.seen);
        self.drain();
    }
}
