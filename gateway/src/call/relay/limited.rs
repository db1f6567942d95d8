//! The caller's body on its way to a function: counted, cut at the operator's limit or when it is too slow, and read to
//! its end when nobody wants the rest.

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

/// How long a caller that has sent next to nothing may keep its function waiting; more is earned by bytes.
const CALL_GRACE: Duration = Duration::from_secs(2);

/// A body that fails with [`BodyTooLarge`] instead of growing without end, and with [`BodyTooSlow`] instead of never ending.
#[derive(Debug)]
pub(crate) struct Limited<B: Whole> {
    /// `None` once it failed or is being thrown away.
    inner: Option<B>,
    seen: u64,
    limit: units::Bytes,
    /// How long the unwanted rest is read.
    linger: Duration,
    /// The caller waits for `100 Continue` and nobody has read yet: it will not send an unwanted body.
    waits: bool,
    /// Where its bytes are counted.
    counter: IntCounter,
    pace: Pace,
    /// Once a call waits for it.
    progress: Option<BodyProgress>,
}

/// A body that can be read on behind its request's back.
pub(crate) trait Whole:
    Body<Data = Bytes, Error: Into<BodyError>> + Send + Unpin + 'static
{
}
impl<B: Body<Data = Bytes, Error: Into<BodyError>> + Send + Unpin + 'static> Whole for B {}

impl<B: Whole> Limited<B> {
    pub(crate) fn new(
        inner: B,
        limit: units::Bytes,
        linger: Duration,
        waits: bool,
        counter: IntCounter,
        pace: PaceLimits,
    ) -> Self {
        let (inner, pace) = (Some(inner), Pace::new(pace));
        Self { inner, seen: 0, limit, linger, waits, counter, pace, progress: None }
    }

    /// From now on a call waits for the rest of it, of which `received` bytes were taken in before.
    pub(crate) fn begin_call(&mut self, received: u64) -> BodyProgress {
        self.pace.begin_call(received, CALL_GRACE);
        self.progress.insert(BodyProgress::default()).clone()
    }

    /// Nothing has come from the caller.
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(progress) = &self.progress {
            progress.awaits(true);
            if progress.is_answered() {
                return Poll::Pending;
            }
        }
        ready!(self.pace.poll_wait(cx));
        self.inner = None; // who is too slow for a call is so for the rest, too
        Poll::Ready(Some(Err(Box::new(BodyTooSlow))))
    }

    fn completed(&self) {
        if let Some(progress) = &self.progress {
            progress.completed();
        }
    }

    /// Reads on without keeping anything. A connection that is closed under a sender makes the kernel
    /// throw away the answer that lies on the sender's side unread; so let it finish, within a limit.
    fn throw_rest_away(&mut self) {
        let Some(mut rest) = self.inner.take() else { return };
        if rest.is_end_stream() || self.waits || self.linger.is_zero() {
            return;
        }
        // Outside of a runtime only while the process ends; then nobody sends any more.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let linger = self.linger;
        runtime.spawn(async move {
            let read_on = async {
                use http_body_util::BodyExt;
                while let Some(Ok(_)) = rest.frame().await {}
            };
            // Either way the body is dropped now; if there is more of it, hyper closes the connection.
            let _ = tokio::time::timeout(linger, read_on).await;
        });
    }
}

/// A body that breaks HTTP is the caller's fault and worth an answer; one that breaks off has no caller any more.
fn told_apart(err: BodyError) -> BodyError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&*err);
    while let Some(one) = cause {
        // hyper's decoder of chunks says so of sizes, extensions and trailers that it cannot read.
        let kind = one.downcast_ref::<io::Error>().map(io::Error::kind);
        if let Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) = kind {
            return Box::new(BodyMalformed);
        }
        cause = one.source();
    }
    err
}

impl<B: Whole> Body for Limited<B> {
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
            Poll::Ready(Some(Err(err))) => return Poll::Ready(Some(Err(told_apart(err.into())))),
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
            self.throw_rest_away();
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

impl<B: Whole> Drop for Limited<B> {
    fn drop(&mut self) {
        self.counter.inc_by(self.seen);
        self.throw_rest_away();
    }
}
