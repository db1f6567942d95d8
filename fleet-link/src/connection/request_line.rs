//! The request line as its caller wrote it. `http::Uri` cannot hold every byte that a target may
//! have on the wire (`"`, `<`, `>`), so hyper writes it escaped, and this writes the original
//! instead. Used by [`super::Connection::send`] for requests with a
//! [`epsilon_api::headers::RawTarget`]; all others cost one look at a flag.

use epsilon_api::headers::RawTarget;
use http::Request;
use parking_lot::Mutex;
use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::{Context, Poll, ready},
};
use tokio::io::AsyncWrite;

/// Set by the sender of a request, read by the connection's writer.
#[derive(Debug, Default)]
pub(super) struct RequestLine {
    is_set: AtomicBool,
    line: Mutex<Option<Line>>,
}

#[derive(Debug)]
struct Line {
    /// As hyper writes it: method and escaped target.
    escaped: Vec<u8>,
    /// As it is written to the stream.
    raw: Vec<u8>,
    written: usize,
}

impl RequestLine {
    /// Announces the request whose bytes are written next.
    pub(super) fn set<B>(&self, request: &Request<B>) {
        let Some(RawTarget(raw)) = request.extensions().get() else { return };
        // The target comes from a caller: no byte of it may end the line.
        let is_target = raw.as_bytes().first() == Some(&b'/')
            && raw.as_bytes().iter().all(|b| *b > b' ' && *b != 0x7f);
        if is_target {
            let method = request.method().as_str();
            let line = Line {
                escaped: format!("{method} {} ", request.uri()).into_bytes(),
                raw: [method.as_bytes(), b" ", raw.as_bytes(), b" "].concat(),
                written: 0,
            };
            *self.line.lock() = Some(line);
            self.is_set.store(true, Relaxed);
        }
    }

    /// Writes the raw line instead of the first bytes that hyper writes, and returns how many of
    /// those it replaces. `None`: no raw line is set.
    pub(super) fn poll_write<S: AsyncWrite>(
        &self,
        mut stream: Pin<&mut S>,
        cx: &mut Context<'_>,
        hypers: &[u8],
    ) -> Option<Poll<io::Result<usize>>> {
        if !self.is_set.load(Relaxed) {
            return None;
        }
        let mut line = self.line.lock();
        let whole = line.as_mut().filter(|line| hypers.starts_with(&line.escaped));
        let Some(Line { escaped, raw, written }) = whole else {
            self.is_set.store(false, Relaxed);
            return None; // no match: hyper's own line goes out, with the escaped target
        };
        let result = (|| {
            while *written < raw.len() {
                match ready!(stream.as_mut().poll_write(cx, &raw[*written..])) {
                    Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Ok(size) => *written += size,
                    Err(err) => return Poll::Ready(Err(err)),
                }
            }
            Poll::Ready(Ok(escaped.len()))
        })();
        if result.is_ready() {
            *line = None;
            self.is_set.store(false, Relaxed);
        }
        Some(result)
    }
}
