//! The body of a call: a stream of bytes of unknown origin, boxed once per call, so that gateway
//! and agent can pass it on without knowing each other's types. Never collected in memory.

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

/// Any error while a body is read.
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

/// A body without bytes.
pub fn empty() -> CallBody {
    boxed(Empty::new())
}

/// A body that is already in memory.
pub fn full(bytes: impl Into<Bytes>) -> CallBody {
    boxed(Full::new(bytes.into()))
}

/// A body that holds a guard until its last byte was handed over or it is dropped.
#[derive(Debug)]
pub struct Holding<B, G> {
    /// The wrapped body.
    pub body: B,
    /// Dropped with the body.
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

/// The caller broke HTTP framing within its body. Found as the source of a relay error, it becomes
/// `BAD_REQUEST`; a caller that merely hung up is not this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is not framed as HTTP requires")]
pub struct BodyMalformed;

/// The caller sent its body more slowly than the operator allows. Found as the source of a relay
/// error, it becomes `BODY_TOO_SLOW`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body arrives too slowly")]
pub struct BodyTooSlow;

/// Progress of a request body that was not complete when its call began. Shared by the task that
/// reads it from the caller and the one that waits for the answer: whose slowness it is decides
/// what a missed deadline means.
#[derive(Clone, Debug, Default)]
pub struct BodyProgress(Arc<Progress>);

#[derive(Debug, Default)]
struct Progress {
    complete: AtomicBool,
    /// The function waits for more of it and the caller has sent nothing.
    is_awaited: AtomicBool,
    answered: AtomicBool,
}

impl BodyProgress {
    /// The caller has sent all of it.
    pub fn completed(&self) {
        self.0.complete.store(true, Relaxed);
    }

    /// Whether the caller has sent all of it.
    pub fn is_complete(&self) -> bool {
        self.0.complete.load(Relaxed)
    }

    /// Sets whether the function waits for the next bytes.
    pub fn awaits(&self, awaits: bool) {
        self.0.is_awaited.store(awaits, Relaxed);
    }

    /// Whether the caller is the one to act. A body that the function does not read is not complete
    /// either, but that is the function's doing.
    pub fn waits_for_caller(&self) -> bool {
        !self.0.complete.load(Relaxed) && self.0.is_awaited.load(Relaxed)
    }

    /// The head of the answer arrived: from now on both sides may wait for each other.
    pub fn answered(&self) {
        self.0.answered.store(true, Relaxed);
    }

    /// Whether the head of the answer arrived.
    pub fn is_answered(&self) -> bool {
        self.0.answered.load(Relaxed)
    }
}
