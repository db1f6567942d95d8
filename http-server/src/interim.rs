//! Interim answers (1xx: early hints) that we write to a caller. hyper's server writes final
//! answers only, so they are queued here until `transport.rs` writes them, before any byte of the
//! answer. HTTP/1.0 callers get none: they would take one for the answer. Reading those of a
//! function is fleet-link's `connection/interim.rs`.

use http::{HeaderMap, StatusCode, Version, header::CONTENT_LENGTH};
use parking_lot::Mutex;
use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::{Context, Poll, ready},
};
use tokio::io::AsyncWrite;

/// Bytes of interim answers per call at most; more are dropped. Hints are a few links.
const MAX_BYTES: usize = 16 << 10;

/// The interim answers of the call that runs on one connection.
#[derive(Debug, Default)]
pub(crate) struct InterimQueue {
    /// Whether the caller of the current request may get any.
    is_supported: AtomicBool,
    is_used: AtomicBool,
    has_some: AtomicBool,
    state: Mutex<State>,
    clean: Mutex<Option<CleanHeaders>>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes to write.
    bytes: Vec<u8>,
    /// How many of `bytes` are written.
    written: usize,
    /// Bytes queued for this call in all.
    total: usize,
}

/// Changes headers before they are written.
pub(crate) type CleanHeaders = fn(&mut HeaderMap);

impl InterimQueue {
    /// A request begins.
    pub(crate) fn begin(&self, version: Version) {
        self.is_supported.store(version == Version::HTTP_11, Relaxed);
        if self.is_used.swap(false, Relaxed) {
            self.has_some.store(false, Relaxed);
            *self.state.lock() = State::default();
        }
    }

    /// What happens to the headers of the answers to come.
    pub(crate) fn set_clean(&self, clean: CleanHeaders) {
        *self.clean.lock() = Some(clean);
    }

    /// Queues an interim answer with these headers.
    pub(crate) fn push(&self, status: StatusCode, mut headers: HeaderMap) {
        if !self.is_supported.load(Relaxed) {
            return;
        }
        let clean = *self.clean.lock();
        if let Some(clean) = clean {
            clean(&mut headers);
        }
        headers.remove(CONTENT_LENGTH);
        let mut state = self.state.lock();
        let begin = state.bytes.len();
        let reason = status.canonical_reason().unwrap_or("Interim");
        state
            .bytes
            .extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
        for (name, value) in &headers {
            for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                state.bytes.extend_from_slice(piece);
            }
        }
        state.bytes.extend_from_slice(b"\r\n");
        let size = state.bytes.len() - begin;
        if state.total + size > MAX_BYTES {
            state.bytes.truncate(begin);
            return;
        }
        state.total += size;
        self.is_used.store(true, Relaxed);
        self.has_some.store(true, Relaxed);
    }

    /// Writes what is queued.
    ///
    /// # Errors
    /// When the stream breaks.
    pub(crate) fn poll_write<S: AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.has_some.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.state.lock();
        while state.written < state.bytes.len() {
            match ready!(Pin::new(&mut *stream).poll_write(cx, &state.bytes[state.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                size => state.written += size,
            }
        }
        state.bytes.clear();
        state.written = 0;
        self.has_some.store(false, Relaxed);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use std::task::Waker;

    fn written(interims: &InterimQueue) -> String {
        let mut out = std::io::Cursor::new(Vec::new());
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(interims.poll_write(&mut out, cx).is_ready());
        String::from_utf8(out.into_inner()).unwrap()
    }

    fn hints(size: usize) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("link", HeaderValue::try_from("l".repeat(size)).unwrap());
        headers.insert("content-length", HeaderValue::from_static("9"));
        headers
    }

    #[test]
    fn interim_answers_are_written_once_and_bounded() {
        let (interims, hint) = (InterimQueue::default(), StatusCode::EARLY_HINTS);
        interims.begin(Version::HTTP_11);
        interims.push(hint, hints(3));
        assert_eq!(written(&interims), "HTTP/1.1 103 Early Hints\r\nlink: lll\r\n\r\n");
        assert_eq!(written(&interims), "");
        for _ in 0..40 {
            interims.push(hint, hints(1000));
        }
        assert_eq!(written(&interims).matches("103").count(), 15);
        interims.push(hint, hints(1000));
        assert_eq!(written(&interims), "", "the bound holds for the whole call");
        interims.begin(Version::HTTP_11);
        interims.push(hint, hints(1000));
        assert_eq!(written(&interims).matches("103").count(), 1);
        interims.begin(Version::HTTP_10);
        interims.push(hint, hints(3));
        assert_eq!(written(&interims), "");
    }
}
