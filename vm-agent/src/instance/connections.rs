//! Connections to one instance: over its unix socket, or TCP for `runtime: container`. A connection is kept
//! again only after its answer was read to the end. The call that uses it reads and writes it itself; an answer that
//! comes in pieces gets a task for that (`call/reply.rs`).

use super::{
    sockets::{self, SocketFolder},
    unsettled::Unsettled,
};
use epsilon_api::ids::RequestId;
use epsilon_wire::connection::{Connection, Idle};
use std::{io, net::SocketAddr, sync::OnceLock, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// How an instance is reached.
#[derive(Debug)]
pub(crate) enum Upstream {
    /// A wrapper's sockets, and what it says of calls that outlast their answers.
    Sockets(SocketFolder, Option<Unsettled>),
    /// `$PORT` of a container in the egress network.
    Tcp(SocketAddr),
}

#[derive(Debug)]
pub(crate) struct Connections {
    upstream: OnceLock<Upstream>,
    idle: Idle,
}

/// Longest that a server's connection may take. Only one whose queue is full takes more than a moment.
const OPEN: Duration = Duration::from_secs(5);

impl Connections {
    pub(crate) fn new(max_idle: Duration) -> Self {
        Self { upstream: OnceLock::new(), idle: Idle::new(max_idle) }
    }

    /// Says where the instance listens; once, when it is ready.
    pub(crate) fn reach(&self, upstream: Upstream) {
        drop(self.upstream.set(upstream));
    }

    pub(crate) fn upstream(&self) -> Option<&Upstream> {
        self.upstream.get()
    }

    /// Whether a call goes on whose answer was just read to its end.
    pub(crate) fn is_unsettled(&self, call: &RequestId) -> bool {
        match self.upstream.get() {
            Some(Upstream::Sockets(_, Some(unsettled))) => unsettled.take(call),
            Some(Upstream::Sockets(_, None) | Upstream::Tcp(_)) | None => false,
        }
    }

    /// A connection that was used before and is fit to be used again.
    pub(crate) fn reuse(&self) -> Option<Connection> {
        self.idle.reuse()
    }

    /// Takes back a connection whose answer was read to the end.
    pub(crate) fn keep(&self, connection: Connection) {
        self.idle.keep(connection);
    }

    /// A new connection.
    pub(crate) async fn open(&self) -> io::Result<Connection> {
        match self.upstream.get() {
            Some(Upstream::Sockets(folder, _)) => {
                Connection::attended(folder.connect(sockets::CALLS).await?).await
            }
            Some(Upstream::Tcp(address)) => {
                let stream = timeout(OPEN, TcpStream::connect(address)).await??;
                stream.set_nodelay(true)?;
                Connection::attended(stream).await
            }
            None => {
                Err(io::Error::new(io::ErrorKind::NotConnected, "the instance has not started"))
            }
        }
    }
}
