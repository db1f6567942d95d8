//! The body of a call on its way: a stream of bytes of unknown origin, boxed once per call, so that
//! gateway and agent can pass it on without knowing each other's types. Never read as a whole.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

/// Whatever went wrong while a body was read.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A streamed request or response body.
pub type CallBody = UnsyncBoxBody<Bytes, BodyError>;

/// Boxes any body of bytes.
pub fn boxed<B>(body: B) -> CallBody
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// A body without a byte.
pub fn empty() -> CallBody {
    boxed(Empty::new())
}

/// A body that is already in memory.
pub fn full(bytes: impl Into<Bytes>) -> CallBody {
    boxed(Full::new(bytes.into()))
}

/// A body that holds something until its last byte was handed over, or nobody wants it any more.
#[derive(Debug)]
pub struct Holding<B, G> {
    /// The body.
    pub body: B,
    /// What is dropped with it.
    pub held: G,
}

impl<B: Body + Unpin, G: Unpin> Body for Holding<B, G> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The caller sent more than the operator's limit. Found as the source of a relay error, it becomes
/// `BODY_TOO_LARGE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is larger than {limit}")]
pub struct BodyTooLarge {
    /// The operator's limit.
    pub limit: crate::units::Bytes,
}

/// The caller broke HTTP in the middle of its body. Found as the source of a relay error, it becomes
/// `BAD_REQUEST`; a caller that merely went away is not this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is not framed as HTTP asks")]
pub struct BodyMalformed;

/// The caller sent its body more slowly than the operator allows. Found as the source of a relay error, it becomes
/// `BODY_TOO_SLOW`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body comes in too slowly")]
pub struct BodyTooSlow;

/// How far a request's body has come that was not there as a whole when its call began. Shared by the one who reads it
/// from the caller and the one who waits for the answer: whose slowness it is decides what a deadline means.
#[derive(Clone, Debug, Default)]
pub struct BodyProgress(Arc<Progress>);

#[derive(Debug, Default)]
struct Progress {
    complete: AtomicBool,
    /// Somebody wants more of it and the caller has sent nothing.
    is_awaited: AtomicBool,
    answered: AtomicBool,
}

impl BodyProgress {
    /// The caller has sent all of it.
    pub fn completed(&self) {
        self.0.complete.store(true, Relaxed);
    }

    /// Whether it has.
    pub fn is_complete(&self) -> bool {
        self.0.complete.load(Relaxed)
    }

    /// Whether its next bytes are waited for: by the function, through all that lies between.
    pub fn awaits(&self, awaits: bool) {
        self.0.is_awaited.store(awaits, Relaxed);
    }

    /// Whether it is the caller who is waited for. A body that nobody reads is not complete either, and that is the
    /// function's doing.
    pub fn is_callers_turn(&self) -> bool {
        !self.0.complete.load(Relaxed) && self.0.is_awaited.load(Relaxed)
    }

    /// The head of the answer is there: from now on both sides may wait for each other.
    pub fn answered(&self) {
        self.0.answered.store(true, Relaxed);
    }

    /// Whether it is.
    pub fn is_answered(&self) -> bool {
        self.0.answered.load(Relaxed)
    }
}
