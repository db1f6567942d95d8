//! A request's body on its way to what reads it: counted, cut at the operator's limit or when it is
//! too slow, and drained when the rest is not needed.

use crate::{
    observed::{Observed, Observer},
    pace::{Pace, PaceLimits},
};
use bytes::Bytes;
use epsilon_api::{
    body::{BodyError, BodyMalformed, BodyProgress, BodyTooLarge, BodyTooSlow},
    units,
};
use http::{HeaderMap, header::EXPECT};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use prometheus::IntCounter;
use std::{
    error::Error,
    io,
    task::{Context, Poll},
    time::Duration,
};

/// How long the rest of an unwanted body is read and discarded, so that its sender sees the answer
/// and not a broken connection.
pub const LINGER: Duration = Duration::from_secs(10);
/// Time that a caller gets to send the rest of its body once a call waits for it; received bytes
/// earn more.
const CALL_GRACE: Duration = Duration::from_secs(2);

/// Limits of the bodies of one listener.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Largest body.
    pub size: units::Bytes,
    /// How long the unwanted rest is read before the connection is closed.
    pub linger: Duration,
    /// How slowly it may arrive.
    pub pace: PaceLimits,
    /// Removes trailers that must not pass.
    pub clean_trailers: fn(&mut HeaderMap),
}

/// Whether the caller holds its body back until it receives `100 Continue`.
pub fn waits_for_continue(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// A body that fails with [`BodyTooLarge`] beyond the limit, and with [`BodyTooSlow`] if it arrives
/// too slowly.
pub type Limited<B> = Observed<B, Meter>;

/// Counts and times one body.
#[derive(Debug)]
pub struct Meter {
    seen: u64,
    limits: BodyLimits,
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
pub trait UploadBody: Body<Data = Bytes, Error: Into<BodyError>> + Send + Unpin + 'static {}
impl<B: Body<Data = Bytes, Error: Into<BodyError>> + Send + Unpin + 'static> UploadBody for B {}

impl<B: UploadBody> Limited<B> {
    /// `waits`: see [`waits_for_continue`]. The counter counts received bytes.
    pub fn new(body: B, limits: BodyLimits, waits: bool, counter: IntCounter) -> Self {
        let pace = Pace::new(limits.pace);
        Self::over(body, Meter { seen: 0, limits, waits, counter, pace, progress: None })
    }

    /// Called when a call begins to wait for the rest of the body; `received` bytes were read
    /// before.
    pub fn begin_call(&mut self, received: u64) -> BodyProgress {
        let meter = self.observer_mut();
        meter.pace.begin_call(received, CALL_GRACE);
        meter.progress.insert(BodyProgress::default()).clone()
    }
}

impl<B: UploadBody> Observer<B> for Meter {
    fn frame(&mut self, frame: &mut Frame<Bytes>, _is_last: bool) -> Result<(), BodyError> {
        self.waits = false;
        if let Some(trailers) = frame.trailers_mut() {
            (self.limits.clean_trailers)(trailers);
        }
        let size = frame.data_ref().map_or(0, |data| data.len() as u64);
        self.seen += size;
        if let Some(progress) = &self.progress {
            progress.awaits(false);
        }
        self.pace.received(size);
        if self.seen > self.limits.size.get() {
            return Err(Box::new(BodyTooLarge { limit: self.limits.size }));
        }
        Ok(())
    }

    /// Too slow for the call is too slow for draining.
    fn pending(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        self.waits = false;
        if let Some(progress) = &self.progress {
            progress.awaits(true);
            if progress.is_answered() {
                return Poll::Pending;
            }
        }
        self.pace.poll_wait(cx).map(|()| Box::new(BodyTooSlow) as BodyError)
    }

    fn end(&mut self) {
        if let Some(progress) = &self.progress {
            progress.completed();
        }
    }

    fn failed(&mut self, err: B::Error) -> BodyError {
        classify_body_error(err.into())
    }

    /// Drains the body without storing it. When a connection is closed while the peer sends, the
    /// kernel resets it and discards an answer that the peer has not read yet; so the peer may
    /// finish sending, within a time limit.
    fn unread(&mut self, mut rest: B) {
        let linger = self.limits.linger;
        if self.waits || linger.is_zero() {
            return;
        }
        // There is no runtime only while the process ends; then no peer sends any more.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let read_on = async { while let Some(Ok(_)) = rest.frame().await {} };
            // The body is dropped after the timeout, too; if more of it is unread, hyper closes the
            // connection.
            let _ = tokio::time::timeout(linger, read_on).await;
        });
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.counter.inc_by(self.seen);
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
