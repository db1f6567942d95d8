//! One HTTP/1 connection that we opened, and the idle ones beside it. The one used last is taken first, so
//! that the others grow old and are closed by us, before the server would close them.

use epsilon_api::body::CallBody;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::{collections::VecDeque, io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::AbortHandle,
    time::{Instant, timeout},
};

/// How long a connection may take from the last byte of one answer until it takes the next request. Only a
/// request whose upload nobody read keeps it longer, and then a fresh one is the better choice.
const SETTLE: Duration = Duration::from_millis(2);

/// One connection. Dropping it closes it at once, whatever is under way on it.
#[derive(Debug)]
pub struct Connection {
    /// Takes requests.
    pub sender: SendRequest<CallBody>,
    driver: AbortHandle,
}

impl Connection {
    /// Speaks HTTP/1 on a stream. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn handshake<S>(stream: S) -> io::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // Ends with the connection; its errors reach the call through the sender.
        let driver =
            tokio::spawn(async move { drop(connection.with_upgrades().await) }).abort_handle();
        Ok(Self { sender, driver })
    }

    /// The connection once it is ready for a request; `None` when it does not get there.
    pub async fn settled(mut self) -> Option<Self> {
        if self.sender.is_ready() {
            return Some(self);
        }
        match timeout(SETTLE, self.sender.ready()).await {
            Ok(Ok(())) => Some(self),
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Connections that wait for their next request.
#[derive(Debug)]
pub struct Idle {
    kept: Mutex<VecDeque<(Connection, Instant)>>,
    max_idle: Duration,
}

impl Idle {
    /// None yet; none stays longer than `max_idle`.
    pub fn new(max_idle: Duration) -> Self {
        Self { kept: Mutex::default(), max_idle }
    }

    /// A connection that was used before and is fit to be used again.
    pub fn reuse(&self) -> Option<Connection> {
        let mut kept = self.kept.lock();
        let now = Instant::now();
        while let Some((_, since)) = kept.back() {
            if now.duration_since(*since) >= self.max_idle {
                kept.clear(); // the last one used is too old, so all are
                return None;
            }
            match kept.pop_back() {
                Some((connection, _)) if !connection.sender.is_closed() => return Some(connection),
                _ => {}
            }
        }
        None
    }

    /// Takes back a connection whose answer was read to the end.
    pub fn keep(&self, connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        let now = Instant::now();
        let mut kept = self.kept.lock();
        while kept.front().is_some_and(|(_, since)| now.duration_since(*since) >= self.max_idle) {
            kept.pop_front();
        }
        kept.push_back((connection, now));
    }
}
