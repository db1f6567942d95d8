//! The request's body for one VM after the other. The part that a VM read before it refused is
//! stored for the next VM, up to [`MAX_STORED`], which equals what `call/buffer.rs` reads ahead: a
//! client sends the body right after the head, so by the time an agent's refusal arrives, a small
//! body has been read. Storing counts references; nothing is copied.

use crate::call::buffer::MAX_BUFFERED;
use bytes::Bytes;
use epsilon_api::body::{self, BodyError, CallBody};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

/// Most bytes of a body that are stored: JSON and forms fit, uploads do not. Held only while the
/// call waits for its answer and another VM could take it.
const MAX_STORED: usize = MAX_BUFFERED;
/// Most pieces that are stored: each may be a few bytes of a large read buffer that it keeps alive.
const PIECES: usize = 32;

/// A body that can be lent to several VMs, one at a time.
pub(crate) struct Lender {
    shared: Arc<Mutex<Shared>>,
    /// Size hint of the untouched body.
    hint: SizeHint,
    empty: bool,
}

struct Shared {
    /// The unread part; absent while a borrower reads it.
    rest: Option<CallBody>,
    stored: Vec<Bytes>,
    size: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The body is `stored` followed by `rest`.
    Going,
    /// The body is `stored`.
    Ended,
    /// The body broke, or exceeds what is stored.
    Lost,
}

impl Lender {
    pub(crate) fn new(body: CallBody) -> Self {
        let hint = body.size_hint();
        let empty = body.is_end_stream();
        let state = if empty { State::Ended } else { State::Going };
        let shared = Shared { rest: Some(body), stored: Vec::new(), size: 0, state };
        Self { shared: Arc::new(Mutex::new(shared)), hint, empty }
    }

    /// Whether the body can be sent from its first byte.
    pub(crate) fn is_whole(&self) -> bool {
        let shared = self.shared.lock();
        match shared.state {
            State::Going => shared.rest.is_some(),
            State::Ended => true,
            State::Lost => false,
        }
    }

    /// The body from its first byte, for a VM; `None` if that is not possible.
    pub(crate) fn lend(&self) -> Option<CallBody> {
        self.is_whole().then(|| body::boxed(self.borrowed()))
    }

    /// The body for the last VM: no more of it is stored.
    pub(crate) fn give(self) -> Option<CallBody> {
        {
            let mut shared = self.shared.lock();
            if shared.state != State::Lost && shared.stored.is_empty() && shared.rest.is_some() {
                return shared.rest.take(); // untouched: passed on as if never lent
            }
        }
        self.lend()
    }

    fn borrowed(&self) -> Borrowed {
        let shared = Arc::clone(&self.shared);
        Borrowed { shared, reads: None, at: 0, given: 0, hint: self.hint, empty: self.empty }
    }
}

/// A body that is lent to one VM. Gives the unread part back when dropped.
struct Borrowed {
    shared: Arc<Mutex<Shared>>,
    /// The unread part, once the stored pieces are used up.
    reads: Option<CallBody>,
    /// Number of stored pieces returned so far.
    at: usize,
    given: u64,
    hint: SizeHint,
    empty: bool,
}

impl Borrowed {
    /// The next stored piece.
    fn next_stored(&mut self) -> Option<Bytes> {
        if self.reads.is_some() {
            return None;
        }
        let next = self.shared.lock().stored.get(self.at).cloned()?;
        self.at += 1;
        Some(next)
    }

    fn store(&mut self, frame: &Frame<Bytes>) {
        let mut shared = self.shared.lock();
        match frame.data_ref() {
            Some(data)
                if shared.state == State::Going
                    && shared.size + data.len() <= MAX_STORED
                    && shared.stored.len() < PIECES =>
            {
                shared.size += data.len();
                shared.stored.push(data.clone());
                self.at += 1;
            }
            // Trailers belong to bodies that are not retried.
            Some(_) | None => shared.lose(),
        }
    }
}

impl Shared {
    fn lose(&mut self) {
        self.state = State::Lost;
        self.stored = Vec::new();
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Some(rest) = self.reads.take() {
            self.shared.lock().rest = Some(rest);
        }
    }
}

impl Body for Borrowed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.empty {
            return Poll::Ready(None); // an empty body is never used up
        }
        if let Some(stored) = self.next_stored() {
            self.given += stored.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(stored))));
        }
        if self.reads.is_none() {
            let rest = self.shared.lock().rest.take();
            self.reads = rest;
        }
        let Some(rest) = &mut self.reads else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(rest).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                self.given += frame.data_ref().map_or(0, |data| data.len() as u64);
                self.store(frame);
            }
            Some(Err(_)) => self.shared.lock().lose(),
            None => {}
        }
        let is_over = self.reads.as_ref().is_none_or(Body::is_end_stream);
        if frame.is_none() || is_over {
            let mut shared = self.shared.lock();
            if shared.state == State::Going {
                shared.state = State::Ended;
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.reads {
            Some(rest) => rest.is_end_stream(),
            None => {
                let shared = self.shared.lock();
                self.empty || (shared.state == State::Ended && self.at >= shared.stored.len())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.hint.exact() {
            Some(all) => SizeHint::with_exact(all.saturating_sub(self.given)),
            None => SizeHint::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http_body_util::{BodyExt, StreamBody};
    use std::convert::Infallible;

    /// A body of these frames, of unknown length.
    fn frames(frames: &[&'static [u8]]) -> CallBody {
        let frames: Vec<_> = frames
            .iter()
            .map(|frame| Ok::<_, Infallible>(Frame::data(Bytes::from_static(frame))))
            .collect();
        body::boxed(StreamBody::new(stream::iter(frames)))
    }

    async fn read(mut body: CallBody, most: usize) -> Vec<u8> {
        let mut seen = Vec::new();
        for _ in 0..most {
            let Some(frame) = body.frame().await else { break };
            seen.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        seen
    }

    #[tokio::test]
    async fn what_one_vm_took_the_next_one_gets() {
        let lender = Lender::new(frames(&[b"one ", b"two ", b"three"]));
        assert_eq!(read(lender.lend().unwrap(), 2).await, b"one two ");
        assert!(lender.is_whole());
        assert_eq!(read(lender.lend().unwrap(), 1).await, b"one ");
        assert_eq!(read(lender.lend().unwrap(), 9).await, b"one two three");
        assert_eq!(read(lender.lend().unwrap(), 9).await, b"one two three", "all of it was stored");
        assert_eq!(read(lender.give().unwrap(), 9).await, b"one two three");
    }

    #[tokio::test]
    async fn a_body_of_known_length_keeps_its_length() {
        let lender = Lender::new(body::full("hello"));
        for _ in 0..3 {
            let mut body = lender.lend().unwrap();
            assert_eq!(body.size_hint().exact(), Some(5));
            body.frame().await.unwrap().unwrap();
            assert_eq!(body.size_hint().exact(), Some(0));
            assert!(body.is_end_stream());
        }
    }

    #[tokio::test]
    async fn a_body_has_one_reader_at_a_time() {
        let lender = Lender::new(frames(&[b"one", b"two"]));
        let mut reads = lender.lend().unwrap();
        reads.frame().await.unwrap().unwrap();
        assert!(!lender.is_whole() && lender.lend().is_none());
        drop(reads);
        assert_eq!(read(lender.give().unwrap(), 9).await, b"onetwo");
    }

    #[tokio::test]
    async fn a_large_body_is_sent_once() {
        static LARGE: [u8; MAX_STORED] = [7; MAX_STORED];
        let lender = Lender::new(frames(&[&LARGE, b"!", b"?"]));
        assert_eq!(read(lender.lend().unwrap(), 1).await.len(), MAX_STORED);
        assert!(lender.is_whole(), "exactly this much is stored");
        let mut second = lender.lend().unwrap();
        for _ in 0..2 {
            second.frame().await.unwrap().unwrap();
        }
        assert_eq!(read(second, 9).await, b"?", "the reader still gets the rest");
        assert!(!lender.is_whole() && lender.give().is_none());
    }

    #[tokio::test]
    async fn a_body_that_broke_is_lost() {
        let broken = stream::iter([Ok(Frame::data(Bytes::from_static(b"x"))), Err("gone")]);
        let lender = Lender::new(body::boxed(StreamBody::new(broken)));
        let mut reads = lender.lend().unwrap();
        reads.frame().await.unwrap().unwrap();
        assert!(reads.frame().await.unwrap().is_err());
        drop(reads);
        assert!(!lender.is_whole());
    }

    #[tokio::test]
    async fn an_empty_body_is_never_used_up() {
        let lender = Lender::new(body::empty());
        assert!(lender.lend().unwrap().frame().await.is_none());
        assert!(lender.lend().unwrap().is_end_stream());
        assert_eq!(lender.give().unwrap().size_hint().exact(), Some(0));
    }
}
