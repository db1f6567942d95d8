//! Between hyper and the socket: features for which hyper has no setting.
//!
//! - Targets that hyper would refuse ([`crate::target`]).
//! - hyper's own empty answers to requests that it cannot read are held back, because
//!   [`crate::refusal`] answers with a body and an id. A write is hyper's own if no answer of ours
//!   is pending and no call runs.
//! - Heads with more fields than hyper parses without an allocation are parsed twice: see `again`.
//! - Interim answers (1xx), which hyper's server does not write.
//! - Callers that close their sending half and wait for the answer. hyper does not look at the
//!   socket while it writes an answer; this file does, and distinguishes a half-closed connection
//!   (the call continues) from a broken one (the call ends).

use crate::{
    exchange::Exchange,
    socket::{Socket, Watched},
    target::Scan,
};
use bytes::{Buf, Bytes};
use http::StatusCode;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// hyper's view of the socket; see the module for what it changes.
#[derive(Debug)]
pub(crate) struct Transport<S> {
    pub(crate) watched: Watched<S>,
    /// Bytes that the next parser reads before those of the socket.
    again: Bytes,
    scan: Scan,
    /// Whether the end of the input is noticed while an answer is written.
    detects_half_close: bool,
    /// Status of hyper's own answer, which is not written.
    pub(crate) refused: Option<StatusCode>,
}

impl<S: Socket> Transport<S> {
    pub(crate) fn new(watched: Watched<S>, detects_half_close: bool) -> Self {
        let again = Bytes::new();
        Self { watched, again, scan: Scan::default(), detects_half_close, refused: None }
    }

    /// Prepares for another parser, which starts at the first byte that the last one could not
    /// read.
    pub(crate) fn again(self, unread: Bytes) -> Self {
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
        !exchange.has_pending_answer() && !exchange.is_upgraded() && !self.is_busy()
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
        if matches!(result, Poll::Ready(Ok(1..))) {
            self.exchange().note_progress();
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
        if buf.filled().len() == before || exchange.is_upgraded() {
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
        exchange.add_replaced(this.scan.head(bytes));
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
            self.exchange().answer_written();
        } else if self.detects_half_close
            && !self.exchange().is_half_closed()
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
