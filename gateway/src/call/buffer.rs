//! Reads the first bytes of a body, once the version is known and before the call takes a
//! concurrency slot, so that a slow caller does not occupy one. A body whose declared length is at
//! most [`MAX_BUFFERED`] is read completely. Of any other body, the first [`MAX_BUFFERED`] bytes are
//! read, or less if its length is unknown and the sender pauses: it may be waiting for an answer.
//!
//! The memory of all buffers together is limited to [`MAX_TOTAL`]. Beyond it bodies are passed on
//! as they arrive, under the rules of `epsilon_http_server::pace`. A small body that arrived with its head is
//! passed on without a copy.

use bytes::{Bytes, BytesMut};
use epsilon_api::{
    body::{self, BodyError, BodyProgress, CallBody},
    error::VmError,
};
use epsilon_http_server::limited::{Limited, UploadBody};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// Most bytes of one body that are read ahead: JSON and forms fit.
pub(crate) const MAX_BUFFERED: usize = 256 << 10;
/// Most bytes buffered for all bodies together. Small bodies that arrived with their heads do not
/// count.
const MAX_TOTAL: usize = 64 << 20;
/// Bytes per semaphore permit.
const PERMIT_BYTES: usize = 4 << 10;
/// How long the sender of a body of unknown length may pause before the call continues.
const PAUSE: Duration = Duration::from_millis(250);

/// Memory for bodies that are read ahead.
#[derive(Debug)]
pub(super) struct Buffers(Arc<Semaphore>);

impl Buffers {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_TOTAL / PERMIT_BYTES)))
    }

    /// Reads ahead. Returns the body to send, and its progress if the caller has not sent all of it
    /// yet. Dropped when the caller hangs up.
    ///
    /// # Errors
    /// When the body is too slow, too large or broken before that.
    pub(super) async fn read<B: UploadBody>(
        &self,
        mut body: Limited<B>,
    ) -> Result<(CallBody, Option<BodyProgress>), VmError> {
        if body.is_end_stream() {
            return Ok((body::empty(), None)); // which is no allocation
        }
        let length = body.size_hint().exact();
        let mut data = Data::default();
        let mut permit = None;
        // One pause for the whole body: a sender of many small pieces does not delay its call
        // further.
        let deadline = Instant::now() + PAUSE;
        let end = loop {
            let frame = match length {
                Some(_) => body.frame().await,
                None => match timeout_at(deadline, body.frame()).await {
                    Ok(frame) => frame,
                    Err(_) => break None,
                },
            };
            match frame.transpose().map_err(|err| broken(&*err))?.map(Frame::into_data) {
                Some(Ok(piece)) => data.push(piece),
                Some(Err(frame)) => break Some(frame.into_trailers().unwrap_or_default()),
                None => break Some(HeaderMap::new()),
            }
            if body.is_end_stream() {
                break Some(HeaderMap::new());
            }
            if data.len() >= MAX_BUFFERED || !self.reserve(&mut permit, data.len()) {
                break None;
            }
        };
        let data = data.into_bytes();
        match end {
            // A small body that arrived with its head: passed on without a copy.
            Some(_) if length.is_some() && permit.is_none() => Ok((body::full(data), None)),
            Some(trailers) => {
                let rest = Rest::<B>::End { trailers: (!trailers.is_empty()).then_some(trailers) };
                Ok((boxed(data, rest, length.is_some(), permit), None))
            }
            None => {
                let progress = body.begin_call(data.len() as u64);
                Ok((boxed(data, Rest::Body(body), length.is_some(), permit), Some(progress)))
            }
        }
    }

    /// Reserves memory for this many bytes.
    fn reserve(&self, permit: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> bool {
        let has = permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more =
            u32::try_from(bytes.div_ceil(PERMIT_BYTES).saturating_sub(has)).unwrap_or(u32::MAX);
        let Ok(more) = Arc::clone(&self.0).try_acquire_many_owned(more) else { return false };
        match permit {
            Some(permit) => permit.merge(more),
            None => *permit = Some(more),
        }
        true
    }
}

/// The error of a body that failed before the call was sent. If the caller is gone, the answer is
/// not read by anyone.
fn broken(err: &(dyn std::error::Error + Send + Sync + 'static)) -> VmError {
    VmError::from_body_error(err).unwrap_or(VmError::CallerGone)
}

/// The bytes read so far. A single piece is passed on as it is; several are copied, because each
/// may be a few bytes of a large read buffer that it would keep alive.
#[derive(Default)]
enum Data {
    #[default]
    None,
    One(Bytes),
    Many(BytesMut),
}

impl Data {
    fn push(&mut self, piece: Bytes) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(piece),
            Self::One(first) => {
                let mut all = BytesMut::with_capacity(2 * (first.len() + piece.len()));
                all.extend_from_slice(&first);
                all.extend_from_slice(&piece);
                Self::Many(all)
            }
            Self::Many(mut all) => {
                all.extend_from_slice(&piece);
                Self::Many(all)
            }
        };
    }

    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(data) => data.len(),
            Self::Many(data) => data.len(),
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::None => Bytes::new(),
            Self::One(data) => data,
            Self::Many(data) => data.freeze(),
        }
    }
}

fn boxed<B: UploadBody>(
    data: Bytes,
    rest: Rest<B>,
    has_length: bool,
    permit: Option<OwnedSemaphorePermit>,
) -> CallBody {
    let data = (!data.is_empty()).then_some(data);
    body::boxed(Buffered { data, rest, has_length, _permit: permit })
}

/// A body: the bytes that were read ahead, then the rest.
struct Buffered<B: UploadBody> {
    data: Option<Bytes>,
    rest: Rest<B>,
    /// Whether the body is sent on with its length or in chunks, as it came.
    has_length: bool,
    /// The memory reserved for the bytes read ahead.
    _permit: Option<OwnedSemaphorePermit>,
}

enum Rest<B: UploadBody> {
    Body(Limited<B>),
    End {
        trailers: Option<HeaderMap>,
    },
    /// The end of the body was returned.
    Over,
}

impl<B: UploadBody> Body for Buffered<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match &mut self.rest {
            Rest::Body(body) => Pin::new(body).poll_frame(cx),
            Rest::End { trailers } => {
                let trailers = trailers.take();
                self.rest = Rest::Over;
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Rest::Over => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none()
            && match &self.rest {
                Rest::Body(body) => body.is_end_stream(),
                Rest::End { .. } => self.has_length,
                Rest::Over => true,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.rest {
            Rest::Body(body) => body.size_hint().exact(),
            Rest::End { .. } | Rest::Over => Some(0),
        };
        let data = self.data.as_ref().map_or(0, Bytes::len) as u64;
        match rest.filter(|_| self.has_length) {
            Some(rest) => SizeHint::with_exact(data + rest),
            None => SizeHint::new(),
        }
    }
}

#[cfg(test)]
mod tests;
