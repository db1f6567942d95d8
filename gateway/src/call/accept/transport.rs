//! Between hyper and the socket: features for which hyper has no setting.
//!
//! - Targets that hyper would refuse ([`super::target`]).
//! - hyper's own empty answers to requests that it cannot read are held back, because
//!   [`super::refusal`] answers with a body and an id. A write is hyper's own if no answer of ours
//!   is pending and no call runs.
//! - Heads with more fields than hyper parses without an allocation are parsed twice: see `again`.
//! - Interim answers of functions (1xx), which hyper's server does not write.
//! - Callers that close their sending half and wait for the answer. hyper does not look at the
//!   socket while it writes an answer; this file does, and distinguishes a half-closed connection
//!   (the call continues) from a broken one (the call ends).

use super::{
    activity::Watched,
    target::{self, Replaced, Scan, Upload},
};
use crate::call::{lookup::Addressed, relay::headers};
use bytes::{Buf, Bytes};
use epsilon_http_server::interim::InterimQueue;
use http::{HeaderMap, Request, StatusCode};
use http_body::Body;
use parking_lot::Mutex;
use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
};
use tokio_rustls::server::TlsStream;

/// A socket that can detect that its peer closed the sending half, without consuming input.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Whether it can detect that.
    const DETECTS_HALF_CLOSE: bool;

    /// Ready with `true` once the peer has closed its sending half, with an error once the
    /// connection is broken.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>>;
}

impl Socket for TcpStream {
    const DETECTS_HALF_CLOSE: bool = true;

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        // No system call as long as nothing was received: tokio knows from its last read.
        let mut byte = [0];
        self.poll_peek(cx, &mut ReadBuf::new(&mut byte)).map_ok(|size| size == 0)
    }
}

/// TLS announces its end with a message; a connection that ends without one is broken, which hyper
/// detects.
impl Socket for TlsStream<TcpStream> {
    const DETECTS_HALF_CLOSE: bool = false;

    fn poll_ended(&mut self, _: &mut Context<'_>) -> Poll<io::Result<bool>> {
        Poll::Pending
    }
}

/// State shared by the connection's exchanges and its transport. Only one task writes at a time:
/// the connection's.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// Bytes of a call's answer may still have to be written.
    is_answer_pending: AtomicBool,
    /// The connection no longer speaks HTTP.
    is_upgraded: AtomicBool,
    /// Body length of the last request: 0 for none, `UNKNOWN` if chunked.
    upload: AtomicU64,
    has_replaced: AtomicBool,
    replaced: Mutex<Vec<Replaced>>,
    /// Interim answers of the running call.
    interims: InterimQueue,
    is_by_host: AtomicBool,
    is_half_closed: AtomicBool,
    /// When the caller closed its sending half, or when bytes were last sent to it after that.
    progress: Mutex<Option<Instant>>,
    half_closed: Notify,
}

const UNKNOWN: u64 = u64::MAX;

impl Exchange {
    /// A request begins. `false`: its target is not the one that was received, and it must be
    /// refused.
    pub(super) fn begin<B: Body>(&self, request: &mut Request<B>) -> bool {
        let body = request.body();
        let upload = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        self.upload.store(upload.unwrap_or(UNKNOWN), Relaxed);
        self.interims.begin(request.version());
        if !self.has_replaced.swap(false, Relaxed) {
            return true;
        }
        target::restore(request, &std::mem::take(&mut *self.replaced.lock()))
    }

    /// How the function of the running call was addressed.
    pub(super) fn set_addressed(&self, addressed: Addressed) {
        self.is_by_host.store(addressed == Addressed::ByHost, Relaxed);
    }

    /// Queues an interim answer of the function, with its headers cleaned as those of a final
    /// answer.
    pub(super) fn interim(&self, status: StatusCode, mut headers: HeaderMap) {
        let addressed =
            if self.is_by_host.load(Relaxed) { Addressed::ByHost } else { Addressed::ByPath };
        headers::clean_answer(&mut headers, false, addressed);
        self.interims.push(status, headers);
    }

    /// The final answer is about to be written.
    pub(super) fn begin_answer(&self, status: StatusCode) {
        self.is_answer_pending.store(true, Relaxed);
        if status == StatusCode::SWITCHING_PROTOCOLS {
            self.is_upgraded.store(true, Relaxed);
        }
    }

    /// Whether a call's answer may still have to be written.
    pub(super) fn has_pending_answer(&self) -> bool {
        self.is_answer_pending.load(Relaxed)
    }

    /// Resolves when the caller closes its sending half.
    pub(super) async fn half_closed(&self) {
        self.half_closed.notified().await;
    }

    /// Whether the caller closed its sending half and then received nothing for `after`: it may be
    /// gone.
    pub(super) fn is_abandoned(&self, after: Duration, now: Instant) -> bool {
        self.is_half_closed.load(Relaxed)
            && self.progress.lock().is_some_and(|last| now.duration_since(last) >= after)
    }

    fn note_half_closed(&self) {
        if !self.is_half_closed.swap(true, Relaxed) {
            *self.progress.lock() = Some(Instant::now());
            self.half_closed.notify_one();
        }
    }

    fn upload(&self) -> Upload {
        match self.upload.load(Relaxed) {
            0 => Upload::None,
            UNKNOWN => Upload::Unknown,
            size => Upload::Sized(size),
        }
    }
}

/// hyper's view of the socket; see the module for what it changes.
#[derive(Debug)]
pub(super) struct Transport<S> {
    pub(super) watched: Watched<S>,
    /// Bytes that the next parser reads before those of the socket.
    again: Bytes,
    scan: Scan,
    /// Status of hyper's own answer, which is not written.
    pub(super) refused: Option<StatusCode>,
}

impl<S: Socket> Transport<S> {
    pub(super) fn new(watched: Watched<S>) -> Self {
        Self { watched, again: Bytes::new(), scan: Scan::default(), refused: None }
    }

    /// Prepares for another parser, which starts at the first byte that the last one could not
    /// read.
    pub(super) fn again(self, unread: Bytes) -> Self {
        // Bytes that were being passed to a parser when hyper refused.
        let again = [unread, self.again].concat().into();
        Self { again, refused: None, ..self }
    }

    fn exchange(&self) -> &Exchange {
        &self.watched.connection.exchange
    }

    fn is_busy(&self) -> bool {
        self.watched.connection.activity.is_busy()
    }

    /// Whether the current write is hyper's own. hyper writes such an answer in one piece.
    fn is_hyper_answer(&self) -> bool {
        let exchange = self.exchange();
        !exchange.has_pending_answer() && !exchange.is_upgraded.load(Relaxed) && !self.is_busy()
    }

    /// Writes pending interim answers; they must go out before the first byte of the answer.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Watched { stream, connection } = &mut self.watched;
        connection.exchange.interims.poll_write(stream, cx)
    }

    fn refuse(&mut self, text: &[u8]) {
        // `HTTP/1.1 400 …`
        let status = text.get(9..12).and_then(|code| StatusCode::from_bytes(code).ok());
        self.refused = self.refused.or(status).or(Some(StatusCode::BAD_REQUEST));
    }

    fn wrote(&self, result: &Poll<io::Result<usize>>) {
        if matches!(result, Poll::Ready(Ok(1..))) && self.exchange().is_half_closed.load(Relaxed) {
            *self.exchange().progress.lock() = Some(Instant::now());
        }
    }
}

impl<S: Socket> AsyncRead for Transport<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.again.is_empty() {
            let size = this.again.len().min(buf.remaining());
            buf.put_slice(&this.again[..size]);
            this.again.advance(size);
            return Poll::Ready(Ok(()));
        }
        let was_idle = this.watched.connection.activity.is_idle();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.watched).poll_read(cx, buf))?;
        let exchange = &this.watched.connection.exchange;
        if buf.filled().len() == before || exchange.is_upgraded.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let bytes = &mut buf.filled_mut()[before..];
        if this.watched.connection.activity.is_busy() {
            this.scan.body(bytes.len());
            return Poll::Ready(Ok(()));
        }
        if was_idle {
            this.scan.next_head(exchange.upload());
        }
        let replaced = this.scan.head(bytes);
        if !replaced.is_empty() {
            exchange.replaced.lock().extend(replaced);
            exchange.has_replaced.store(true, Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Socket> AsyncWrite for Transport<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_hyper_answer() {
            self.refuse(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(self.poll_interim(cx))?;
        let result = Pin::new(&mut self.watched).poll_write(cx, buf);
        self.wrote(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_hyper_answer() {
            self.refuse(bufs.first().map_or(&[], |buf| buf));
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        ready!(self.poll_interim(cx))?;
        let result = Pin::new(&mut self.watched).poll_write_vectored(cx, bufs);
        self.wrote(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.watched.is_write_vectored()
    }

    /// hyper flushes at the end of each turn, and only when everything is written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_interim(cx))?;
        ready!(Pin::new(&mut self.watched).poll_flush(cx))?;
        if !self.is_busy() {
            self.exchange().is_answer_pending.store(false, Relaxed);
        } else if !self.exchange().is_half_closed.load(Relaxed)
            && let Poll::Ready(ended) = self.watched.stream.poll_ended(cx)
            && ended?
        {
            self.exchange().note_half_closed();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.refused.is_some() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.watched).poll_shutdown(cx)
    }
}
