//! The socket below a connection: reports reads and writes to the connection's activity, and can
//! tell that the peer closed its sending half.

use crate::{coalesce::poll_write_coalesced, connection::Connection};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

/// A socket that can detect that its peer closed the sending half, without consuming input.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin + 'static {
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

/// A socket that reports reads and writes to the connection's activity.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    pub(crate) stream: S,
    pub(crate) connection: Arc<Connection>,
}

impl<S> Watched<S> {
    fn wrote(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &result {
            Poll::Pending => self.connection.activity.wrote(None),
            Poll::Ready(Ok(bytes)) => self.connection.activity.wrote(Some(*bytes as u64)),
            Poll::Ready(Err(_)) => {}
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.connection.activity.read();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = poll_write_coalesced(Pin::new(&mut self.stream), cx, bufs);
        self.wrote(result)
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
