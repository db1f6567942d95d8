//! Connections to one instance: over its unix socket, or TCP for `runtime: container`. A connection
//! goes back to the pool only after its answer was read to the end. The call that uses it drives
//! its I/O; an answer that arrives in pieces gets a task for that (`call/reply.rs`).

use super::{
    sockets::{self, SocketDir},
    unsettled::Unsettled,
};
use epsilon_api::ids::RequestId;
use epsilon_fleet_link::connection::{Connection, IdleConnections};
use std::{io, net::SocketAddr, sync::OnceLock, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// Where an instance listens.
#[derive(Debug)]
pub(crate) enum Upstream {
    /// A wrapper's socket directory, and its reports on calls that outlast their answers.
    Sockets(SocketDir, Option<Unsettled>),
    /// `$PORT` of a container in the egress network.
    Tcp(SocketAddr),
}

#[derive(Debug)]
pub(crate) struct Connections {
    upstream: OnceLock<Upstream>,
    idle: IdleConnections,
}

/// Timeout of a TCP connect. Only a server whose queue is full takes more than a moment.
const OPEN: Duration = Duration::from_secs(5);

impl Connections {
    pub(crate) fn new(max_idle: Duration) -> Self {
        Self { upstream: OnceLock::new(), idle: IdleConnections::new(max_idle) }
    }

    /// Sets where the instance listens; once, when it is ready.
    pub(crate) fn set_upstream(&self, upstream: Upstream) {
        drop(self.upstream.set(upstream));
    }

    pub(crate) fn upstream(&self) -> Option<&Upstream> {
        self.upstream.get()
    }

    /// Whether a call whose answer was just read to its end still runs.
    pub(crate) fn is_unsettled(&self, call: &RequestId) -> bool {
        match self.upstream.get() {
            Some(Upstream::Sockets(_, Some(unsettled))) => unsettled.take(call),
            Some(Upstream::Sockets(_, None) | Upstream::Tcp(_)) | None => false,
        }
    }

    /// An idle connection that is fit to be used again.
    pub(crate) fn reuse(&self) -> Option<Connection> {
        self.idle.reuse()
    }

    /// Takes back a connection whose answer was read to the end.
    pub(crate) fn keep(&self, connection: Connection) {
        self.idle.keep(connection);
    }

    /// Opens a new connection.
    pub(crate) async fn open(&self) -> io::Result<Connection> {
        match self.upstream.get() {
            Some(Upstream::Sockets(folder, _)) => {
                Connection::caller_driven(folder.connect(sockets::CALLS).await?).await
            }
            Some(Upstream::Tcp(address)) => {
                let stream = timeout(OPEN, TcpStream::connect(address)).await??;
                stream.set_nodelay(true)?;
                Connection::caller_driven(stream).await
            }
            None => {
                Err(io::Error::new(io::ErrorKind::NotConnected, "the instance has not started"))
            }
        }
    }
}
