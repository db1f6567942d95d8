//! A body whose frames are observed on their way: counted, limited, or tied to what has to end with
//! it. [`Observed`] is the shell that all such bodies share; what one of them is about is its
//! [`Observer`]. Static: no box and no indirect call for a frame.
//!
//! ```text
//! frame ─▶ frame ─▶ … ─▶ last frame, or none ─▶ end
//!                  ├─ the body fails: failed; it is over
//!                  ├─ no bytes yet: pending, which may give up; it is over
//!                  └─ dropped, or cut by the observer: unread, with the rest
//! ```

use bytes::Bytes;
use epsilon_api::body::BodyError;
use http_body::{Body, Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

/// What happens along a body. The last call is one of `end`, `failed`, `unread`, or a `pending`
/// that gave up.
pub trait Observer<B: Body> {
    /// A frame is about to be passed on. An error is passed on in its place, and nothing after it.
    ///
    /// # Errors
    /// What the reader of the body gets.
    fn frame(&mut self, _frame: &mut Frame<Bytes>, _is_last: bool) -> Result<(), BodyError> {
        Ok(())
    }

    /// No frame is there yet. Ready: the body is given up with this error.
    fn pending(&mut self, _cx: &mut Context<'_>) -> Poll<BodyError> {
        Poll::Pending
    }

    /// The last frame was passed on, or there was none.
    fn end(&mut self) {}

    /// The body failed. Returns what its reader gets.
    fn failed(&mut self, err: B::Error) -> BodyError;

    /// The body is not read to its end. Gets the rest of it.
    fn unread(&mut self, rest: B) {
        drop(rest);
    }
}

/// A body and its observer.
#[derive(Debug)]
pub struct Observed<B: Body<Data = Bytes>, O: Observer<B>> {
    /// `None` once it is over.
    body: Option<B>,
    observer: O,
}

impl<B: Body<Data = Bytes>, O: Observer<B>> Observed<B, O> {
    /// Observes a body from its first frame. One without frames is at its end already.
    pub fn over(body: B, observer: O) -> Self {
        let mut observed = Self { body: Some(body), observer };
        observed.end_if_complete();
        observed
    }

    /// The observer.
    pub fn observer(&self) -> &O {
        &self.observer
    }

    /// The observer.
    pub fn observer_mut(&mut self) -> &mut O {
        &mut self.observer
    }

    fn end_if_complete(&mut self) {
        if self.body.as_ref().is_some_and(Body::is_end_stream) {
            self.body = None;
            self.observer.end();
        }
    }
}

impl<B, O> Body for Observed<B, O>
where
    B: Body<Data = Bytes> + Unpin,
    O: Observer<B> + Unpin,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { body, observer } = &mut *self;
        let Some(inner) = body else { return Poll::Ready(None) };
        match Pin::new(&mut *inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                let is_last = inner.is_end_stream();
                let passed = observer.frame(&mut frame, is_last);
                match (passed, is_last) {
                    (Ok(()), false) => {}
                    (Ok(()), true) => {
                        *body = None;
                        observer.end();
                    }
                    (Err(err), _) => {
                        if let Some(rest) = body.take() {
                            observer.unread(rest);
                        }
                        return Poll::Ready(Some(Err(err)));
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                *body = None;
                observer.end();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(err))) => {
                *body = None;
                Poll::Ready(Some(Err(observer.failed(err))))
            }
            Poll::Pending => {
                let err = ready!(observer.pending(cx));
                *body = None;
                Poll::Ready(Some(Err(err)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B: Body<Data = Bytes>, O: Observer<B>> Drop for Observed<B, O> {
    fn drop(&mut self) {
        if let Some(rest) = self.body.take() {
            self.observer.unread(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, stream};
    use http_body_util::{BodyExt, Full, StreamBody};

    /// Writes down what it sees.
    #[derive(Debug, Default)]
    struct Log {
        seen: Vec<&'static str>,
        cuts: bool,
        gives_up: bool,
    }

    impl<B: Body<Error = &'static str>> Observer<B> for Log {
        fn frame(&mut self, _: &mut Frame<Bytes>, is_last: bool) -> Result<(), BodyError> {
            self.seen.push(if is_last { "last" } else { "frame" });
            if self.cuts { Err("cut".into()) } else { Ok(()) }
        }

        fn pending(&mut self, _: &mut Context<'_>) -> Poll<BodyError> {
            self.seen.push("pending");
            if self.gives_up { Poll::Ready("slow".into()) } else { Poll::Pending }
        }

        fn end(&mut self) {
            self.seen.push("end");
        }

        fn failed(&mut self, err: &'static str) -> BodyError {
            self.seen.push("failed");
            err.into()
        }

        fn unread(&mut self, _: B) {
            self.seen.push("unread");
        }
    }

    type Steps = Vec<Result<Frame<Bytes>, &'static str>>;

    fn frame() -> Result<Frame<Bytes>, &'static str> {
        Ok(Frame::data(Bytes::from_static(b"x")))
    }

    /// What an observer sees of a body of these frames, which then ends or stays silent, and what
    /// the reader gets at last.
    fn seen(steps: Steps, ends: bool, log: Log) -> (Vec<&'static str>, Option<String>) {
        use futures_util::StreamExt;
        let rest =
            if ends { stream::empty().left_stream() } else { stream::pending().right_stream() };
        let body = StreamBody::new(stream::iter(steps).chain(rest));
        let mut body = Observed::over(body, log);
        let mut last = None;
        while let Some(Some(next)) = body.frame().now_or_never() {
            last = next.err().map(|err| err.to_string());
        }
        if let Some(rest) = body.body.take() {
            body.observer.unread(rest);
        }
        (std::mem::take(&mut body.observer.seen), last)
    }

    #[test]
    fn each_body_has_one_end() {
        let cuts = || Log { cuts: true, ..Log::default() };
        let gives_up = || Log { gives_up: true, ..Log::default() };
        let error = |text: &str| Some(text.to_owned());
        for (steps, ends, log, want) in [
            (vec![frame(), frame()], true, Log::default(), (vec!["frame", "frame", "end"], None)),
            (vec![], true, Log::default(), (vec!["end"], None)),
            (vec![frame()], false, Log::default(), (vec!["frame", "pending", "unread"], None)),
            (
                vec![frame(), Err("gone")],
                true,
                Log::default(),
                (vec!["frame", "failed"], error("gone")),
            ),
            (vec![frame(), frame()], true, cuts(), (vec!["frame", "unread"], error("cut"))),
            (vec![frame()], false, gives_up(), (vec!["frame", "pending"], error("slow"))),
        ] {
            assert_eq!(seen(steps, ends, log), want);
        }
    }

    #[test]
    fn a_body_that_knows_its_end_is_over_with_its_last_frame() {
        let full = |text: &'static str| {
            let body = Full::new(Bytes::from_static(text.as_bytes()));
            body.map_err(|never| -> &'static str { match never {} })
        };
        let mut body = Observed::over(full("x"), Log::default());
        assert_eq!(body.size_hint().exact(), Some(1));
        body.frame().now_or_never().unwrap().unwrap().unwrap();
        assert_eq!(body.observer().seen, ["last", "end"]);
        assert!(body.is_end_stream() && body.size_hint().exact() == Some(0));
        let empty = Observed::over(full(""), Log::default());
        assert_eq!(empty.observer().seen, ["end"]);
    }
}
