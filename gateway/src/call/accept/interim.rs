//! Interim answers (1xx) of a function on their way to its caller. hyper's server writes final answers only, so these wait here until
//! [`super::transport`] writes them, before any byte of the answer. Callers of HTTP/1.0 get none: they would take one for the answer.

use crate::call::{lookup::Addressed, relay::headers};
use http::{HeaderMap, StatusCode, Version, header::CONTENT_LENGTH};
use parking_lot::Mutex;
use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::{Context, Poll, ready},
};
use tokio::io::AsyncWrite;

/// Bytes of them for one call at most; what is more is dropped. Hints are a few links.
const MOST: usize = 16 << 10;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Interim {
    /// Whether the caller of the request that runs may get any.
    is_welcome: AtomicBool,
    is_used: AtomicBool,
    has_some: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// To be written.
    bytes: Vec<u8>,
    /// How much of them is.
    written: usize,
    /// What this call has had in all.
    total: usize,
}

impl Interim {
    /// A request begins.
    pub(super) fn begin(&self, version: Version) {
        self.is_welcome.store(version == Version::HTTP_11, Relaxed);
        if self.is_used.swap(false, Relaxed) {
            self.has_some.store(false, Relaxed);
            *self.state.lock() = State::default();
        }
    }

    /// One for the caller. What a final answer of that function may not say, it may not either.
    pub(super) fn push(&self, status: StatusCode, mut headers: HeaderMap, addressed: Addressed) {
        if !self.is_welcome.load(Relaxed) {
            return;
        }
        headers::clean_answer(&mut headers, false, addressed);
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
        if state.total + size > MOST {
            state.bytes.truncate(begin);
            return;
        }
        state.total += size;
        self.is_used.store(true, Relaxed);
        self.has_some.store(true, Relaxed);
    }

    /// Writes those that wait.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
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

    fn written(interim: &Interim) -> String {
        let mut out = std::io::Cursor::new(Vec::new());
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(interim.poll_write(&mut out, cx).is_ready());
        String::from_utf8(out.into_inner()).unwrap()
    }

    fn hints(size: usize) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("link", HeaderValue::try_from("l".repeat(size)).unwrap());
        headers.insert("x-epsilon-outcome", HeaderValue::from_static("threw"));
        headers.insert("connection", HeaderValue::from_static("close"));
        headers.insert("content-length", HeaderValue::from_static("9"));
        headers
    }

    #[test]
    fn they_go_out_once_cleaned_and_up_to_a_bound_for_each_call() {
        let (interim, hint) = (Interim::default(), StatusCode::EARLY_HINTS);
        interim.begin(Version::HTTP_11);
        interim.push(hint, hints(3), Addressed::ByPath);
        assert_eq!(written(&interim), "HTTP/1.1 103 Early Hints\r\nlink: lll\r\n\r\n");
        assert_eq!(written(&interim), "");
        for _ in 0..40 {
            interim.push(hint, hints(1000), Addressed::ByPath);
        }
        assert_eq!(written(&interim).matches("103").count(), 15);
        interim.push(hint, hints(1000), Addressed::ByPath);
        assert_eq!(written(&interim), "", "the bound holds for the whole call");
        interim.begin(Version::HTTP_11);
        interim.push(hint, hints(1000), Addressed::ByPath);
        assert_eq!(written(&interim).matches("103").count(), 1);
        interim.begin(Version::HTTP_10);
        interim.push(hint, hints(3), Addressed::ByPath);
        assert_eq!(written(&interim), "");
    }
}
