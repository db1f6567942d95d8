//! Connections to one instance: over its unix socket, or TCP for `runtime: container`. The one used last is
//! taken first, so that the others grow old and are closed by us, before the instance would close them. A
//! connection is pooled again only after its answer was read to the end.

use super::sockets::{self, SocketFolder};
use epsilon_api::body::CallBody;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::{collections::VecDeque, io, net::SocketAddr, sync::OnceLock, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::AbortHandle,
    time::{Instant, timeout},
};

/// How an instance is reached.
#[derive(Debug)]
pub(crate) enum Upstream {
    /// A wrapper's sockets.
    Sockets(SocketFolder),
    /// `$PORT` of a container in the egress network.
    Tcp(SocketAddr),
}

#[derive(Debug)]
pub(crate) struct Connections {
    upstream: OnceLock<Upstream>,
    idle: Mutex<VecDeque<(Connection, Instant)>>,
    max_idle: Duration,
}

/// Longest that a server's connection may take. Only one whose queue is full takes more than a moment.
const OPEN: Duration = Duration::from_secs(5);

/// One connection. Dropping it closes it at once, whatever is under way on it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) sender: SendRequest<CallBody>,
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// How long a connection may take from the last byte of one answer until it takes the next request. Only a
/// request whose upload nobody read keeps it longer, and then a fresh one is the better choice.
const SETTLE: Duration = Duration::from_millis(2);

impl Connection {
    /// The connection once it is ready for a request; `None` when it does not get there.
    pub(crate) async fn settled(mut self) -> Option<Self> {
        if self.sender.is_ready() {
            return Some(self);
        }
        match timeout(SETTLE, self.sender.ready()).await {
            Ok(Ok(())) => Some(self),
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

impl Connections {
    pub(crate) fn new(max_idle: Duration) -> Self {
        Self { upstream: OnceLock::new(), idle: Mutex::default(), max_idle }
    }

    /// Says where the instance listens; once, when it is ready.
    pub(crate) fn reach(&self, upstream: Upstream) {
        drop(self.upstream.set(upstream));
    }

    pub(crate) fn upstream(&self) -> Option<&Upstream> {
        self.upstream.get()
    }

    /// A connection that was used before and is fit to be used again.
    pub(crate) fn reuse(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        let now = Instant::now();
        while let Some((_, since)) = idle.back() {
            if now.duration_since(*since) >= self.max_idle {
                idle.clear(); // the last one used is too old, so all are
                return None;
            }
            match idle.pop_back() {
                Some((connection, _)) if !connection.sender.is_closed() => return Some(connection),
                _ => {}
            }
        }
        None
    }

    /// Takes back a connection whose answer was read to the end.
    pub(crate) fn keep(&self, connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        let now = Instant::now();
        let mut idle = self.idle.lock();
        while idle.front().is_some_and(|(_, since)| now.duration_since(*since) >= self.max_idle) {
            idle.pop_front();
        }
        idle.push_back((connection, now));
    }

    /// A new connection.
    pub(crate) async fn open(&self) -> io::Result<Connection> {
        match self.upstream.get() {
            Some(Upstream::Sockets(folder)) => {
                handshake(folder.connect(sockets::CALLS).await?).await
            }
            Some(Upstream::Tcp(address)) => {
                let stream = timeout(OPEN, TcpStream::connect(address)).await??;
                stream.set_nodelay(true)?;
                handshake(stream).await
            }
            None => {
                Err(io::Error::new(io::ErrorKind::NotConnected, "the instance has not started"))
            }
        }
    }
}

async fn handshake<S>(stream: S) -> io::Result<Connection>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Ends with the connection; its errors reach the call through the sender.
    let driver = tokio::spawn(async move { drop(connection.with_upgrades().await) }).abort_handle();
    Ok(Connection { sender, driver })
}
