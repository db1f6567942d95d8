//! Bytes on a socket, for requests that no HTTP client would send: broken framing, duplicate
//! headers, a caller that hangs up halfway.

use crate::wait::{SOON, within};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A raw connection. Dropping it hangs up.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
}

impl Wire {
    /// Connects.
    ///
    /// # Panics
    /// When no process listens.
    pub async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// When the peer is gone.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await
    }

    /// Reads until the head of an answer is complete, or the end.
    pub async fn head(&mut self) -> String {
        let mut seen = Vec::new();
        within("the head of an answer", SOON, async {
            while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
                match self.stream.read_u8().await {
                    Ok(byte) => seen.push(byte),
                    Err(_) => break,
                }
            }
        })
        .await;
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Reads exactly so many bytes.
    ///
    /// # Panics
    /// When the peer hangs up before.
    pub async fn exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        within("bytes from the other end", SOON, self.stream.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    /// Reads until the peer hangs up.
    ///
    /// # Panics
    /// When it does not within `limit`.
    pub async fn rest(&mut self, limit: Duration) -> String {
        let mut seen = Vec::new();
        // A reset is an end too; what came before it counts.
        let _ = within("the end of a connection", limit, self.stream.read_to_end(&mut seen)).await;
        String::from_utf8_lossy(&seen).into_owned()
    }
}

/// Sends bytes on a new connection and reads everything until the peer closes.
///
/// # Panics
/// When no process listens, or the connection stays open: add `connection: close` to a valid
/// request.
pub async fn exchange(to: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut wire = Wire::connect(to).await;
    // The peer may answer and close before it has read everything; its answer counts.
    let _ = wire.send(bytes).await;
    wire.rest(SOON).await
}

/// The status in the first line of an answer; 0 without one.
pub fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}
