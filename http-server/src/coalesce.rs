//! Coalesces small writes. Head and small body of a message are two buffers, and a vectored write
//! (`writev`) costs more than copying a few hundred bytes into one buffer. Large bodies are not
//! copied. Used on both ends of a connection: by this server and by `epsilon-fleet-link`'s client.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::AsyncWrite;

/// Bytes up to which buffers are copied into one: head and body of a small message.
const COALESCE_LIMIT: usize = 1024;

/// Writes the buffers, small ones as one.
pub fn poll_write_coalesced<S: AsyncWrite>(
    stream: Pin<&mut S>,
    cx: &mut Context<'_>,
    pieces: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    if let [piece] = pieces {
        return stream.poll_write(cx, piece);
    }
    let mut whole = [0; COALESCE_LIMIT];
    let mut size = 0;
    for piece in pieces {
        let Some(room) = whole.get_mut(size..size + piece.len()) else {
            return stream.poll_write_vectored(cx, pieces);
        };
        room.copy_from_slice(piece);
        size += piece.len();
    }
    stream.poll_write(cx, &whole[..size])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    /// Records plain and vectored writes.
    #[derive(Default)]
    struct Writes(Vec<(&'static str, usize)>);

    impl AsyncWrite for Writes {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.0.push(("one", buf.len()));
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let size = bufs.iter().map(|buf| buf.len()).sum();
            self.0.push(("several", size));
            Poll::Ready(Ok(size))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn small_buffers_are_coalesced_large_ones_not_copied() {
        let (mut writes, large) = (Writes::default(), [0; 4096]);
        let cx = &mut Context::from_waker(Waker::noop());
        for pieces in
            [&[&b"head"[..], b"body"][..], &[&large], &[b"head", &large], &[], &[&large[..1024]]]
        {
            let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            let size: usize = pieces.iter().map(|piece| piece.len()).sum();
            let written = poll_write_coalesced(Pin::new(&mut writes), cx, &slices);
            assert!(matches!(written, Poll::Ready(Ok(n)) if n == size));
        }
        assert_eq!(
            writes.0,
            [("one", 8), ("one", 4096), ("several", 4100), ("one", 0), ("one", 1024)]
        );
    }
}
