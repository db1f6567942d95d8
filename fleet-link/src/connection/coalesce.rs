//! The stream below hyper's client: small writes as one (`epsilon_http_server::coalesce`), the raw
//! request line, interim answers.

use super::{
    interim::{Interim, InterimParser},
    request_line::RequestLine,
};
use epsilon_http_server::coalesce::poll_write_coalesced;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The stream of a connection: coalesces writes, replaces the request line, looks for interim
/// answers.
#[derive(Debug)]
pub(super) struct CoalescedStream<S> {
    stream: S,
    /// Raw request line, written instead of hyper's.
    line: Arc<RequestLine>,
    /// Where interim answers are reported.
    interim: Arc<Interim>,
    parser: InterimParser,
}

impl<S> CoalescedStream<S> {
    pub(super) fn new(stream: S, line: Arc<RequestLine>, interim: Arc<Interim>) -> Self {
        Self { stream, line, interim, parser: InterimParser::default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CoalescedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, interim, parser, .. } = &mut *self;
        let before = buf.filled().len();
        ready!(Pin::new(stream).poll_read(cx, buf))?;
        Poll::Ready(interim.read(parser, &buf.filled()[before..]))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CoalescedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, line, .. } = &mut *self;
        match line.poll_write(Pin::new(stream), cx, buf) {
            Some(written) => written,
            None => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, line, .. } = &mut *self;
        let first = bufs.first().map_or(&[][..], |buf| buf);
        match line.poll_write(Pin::new(stream), cx, first) {
            Some(written) => written,
            None => poll_write_coalesced(Pin::new(stream), cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
