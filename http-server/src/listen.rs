//! A listening port and the connections that arrive there: how many at once, accept errors,
//! closing. What is sent on a connection is not known here.
//!
//! After `close`, it still returns the connections that the kernel had accepted by then: a peer
//! that sees its connection established may have sent a request already, and would get a reset for
//! it.

use crate::limiter::{Admission, Limiter, Slot};
use socket2::{SockRef, TcpKeepalive};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// The kernel's queue of established connections while all slots are taken.
const BACKLOG: u32 = 4096;
/// How often a new connection looks for room: others may have become idle meanwhile.
const SLOT_RETRY: Duration = Duration::from_millis(50);
/// Pauses after an accept error that would repeat at once, such as a lack of file descriptors.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// The stream, with `TCP_NODELAY` set.
    pub stream: TcpStream,
    /// Address of the peer.
    pub peer: SocketAddr,
    /// Its connection slot; freed when dropped.
    pub slot: Slot,
}

/// TCP keep-alive probes, by which a peer that vanished is noticed.
#[derive(Clone, Copy, Debug)]
pub struct Probes {
    /// Silence before the first probe.
    pub after: Duration,
    /// Time between two probes.
    pub every: Duration,
    /// Unanswered probes after which the connection is dead.
    pub count: u32,
}

/// A bound port.
#[derive(Debug)]
pub struct Listener {
    port: Port,
    address: SocketAddr,
    probes: Probes,
    pause: Duration,
    /// Accepted, waiting for a slot.
    waiting: Option<(TcpStream, SocketAddr)>,
}

#[derive(Debug)]
enum Port {
    Open(TcpListener),
    /// Only connections that the kernel has accepted already; never more than its queue holds, or a
    /// flood would keep the port open.
    Closing(std::net::TcpListener, u32),
    Closed,
}

impl Listener {
    /// Binds the address; port 0 picks a free one. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the address is in use or not one of this machine.
    pub fn bind(address: SocketAddr, probes: Probes) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart must not wait for connections of the last run.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok(Self { port: Port::Open(listener), address, probes, pause: FIRST_PAUSE, waiting: None })
    }

    /// A socket that another process has bound and may keep: the service manager does over a
    /// restart. Needs a tokio runtime.
    ///
    /// # Errors
    /// When it is not a listening socket.
    pub fn inherited(listener: std::net::TcpListener, probes: Probes) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        Ok(Self { port: Port::Open(listener), address, probes, pause: FIRST_PAUSE, waiting: None })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection; `None` after `close`, once no connection waits any more.
    /// Accept errors never end it: they are reported to `on_error` with the pause that follows.
    /// Cancel-safe; an accepted connection is not lost.
    pub async fn next(
        &mut self,
        limiter: &Arc<Limiter>,
        close: &CancellationToken,
        on_error: impl Fn(&io::Error, Duration),
    ) -> Option<Accepted> {
        loop {
            if let Some((stream, peer)) = self.waiting.take() {
                match limiter.admit(peer.ip()) {
                    Admission::Slot(slot) => {
                        return Some(self.with_socket_options(stream, peer, slot));
                    }
                    Admission::TooMany => {
                        tracing::debug!(%peer, "Connection refused: its address has too many open connections.");
                    }
                    // A connection without a slot at closing time would not have been served.
                    Admission::Full if close.is_cancelled() => self.port = Port::Closed,
                    Admission::Full => {
                        self.waiting = Some((stream, peer));
                        let _ = timeout(SLOT_RETRY, limiter.freed()).await;
                    }
                }
                continue;
            }
            let Port::Open(listener) = &self.port else {
                self.waiting = Some(self.accept_queued()?);
                continue;
            };
            // Closing first: a flood of connections must not keep the port open.
            let accepted = tokio::select! {
                biased;
                () = close.cancelled() => {
                    self.close();
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(accepted) => {
                    self.pause = FIRST_PAUSE;
                    self.waiting = Some(accepted);
                }
                Err(err) if is_connection_error(&err) => {}
                Err(err) => {
                    on_error(&err, self.pause);
                    // Cut short by closing: the loop's first arm handles it next.
                    let _ = timeout(self.pause, close.cancelled()).await;
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn close(&mut self) {
        self.port = match std::mem::replace(&mut self.port, Port::Closed) {
            Port::Open(listener) => match listener.into_std() {
                Ok(listener) => Port::Closing(listener, BACKLOG),
                Err(_) => Port::Closed,
            },
            other => other,
        };
    }

    /// A connection from the kernel's queue; the port is closed when there is none. Asks the kernel
    /// itself, because the runtime may not have seen the newest ones yet.
    fn accept_queued(&mut self) -> Option<(TcpStream, SocketAddr)> {
        while let Port::Closing(listener, left @ 1..) = &mut self.port {
            *left -= 1;
            match listener.accept() {
                Ok((stream, peer)) => {
                    let stream =
                        stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                    match stream {
                        Ok(stream) => return Some((stream, peer)),
                        Err(_) => continue,
                    }
                }
                Err(err) if is_connection_error(&err) => {}
                Err(_) => break,
            }
        }
        self.port = Port::Closed;
        None
    }

    /// A socket that refuses these options is dead anyway; reading from it reports that.
    fn with_socket_options(&self, stream: TcpStream, peer: SocketAddr, slot: Slot) -> Accepted {
        // Heads and small bodies must not wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let Probes { after, every, count } = self.probes;
        let probes = TcpKeepalive::new().with_time(after).with_interval(every).with_retries(count);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&probes);
        Accepted { stream, peer, slot }
    }
}

/// The peer gave up before its connection was accepted; not an error of the listener.
fn is_connection_error(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::{Exempt, Limits};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const PROBES: Probes =
        Probes { after: Duration::from_secs(9), every: Duration::from_secs(9), count: 3 };

    fn listener() -> Listener {
        Listener::bind("127.0.0.1:0".parse().unwrap(), PROBES).unwrap()
    }

    fn limiter(connections: usize) -> Arc<Limiter> {
        let exempt = Exempt::none();
        Limiter::new(Limits { connections, per_address: 1000, reserve: 0, exempt })
    }

    fn no_error(err: &io::Error, _: Duration) {
        panic!("{err}");
    }

    #[tokio::test]
    async fn connections_queued_before_closing_are_served() {
        let (mut listener, limiter) = (listener(), limiter(100));
        let (address, close) = (listener.address(), CancellationToken::new());
        let mut callers = Vec::new();
        for _ in 0..50 {
            callers.push(TcpStream::connect(address).await.unwrap());
        }
        close.cancel();
        let mut served = 0;
        while let Some(mut accepted) = listener.next(&limiter, &close, no_error).await {
            accepted.stream.write_all(b"!").await.unwrap();
            served += 1;
        }
        assert_eq!(served, callers.len());
        for mut caller in callers {
            assert_eq!(caller.read_u8().await.unwrap(), b'!');
        }
        let refused = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(listener.next(&limiter, &close, no_error).await.is_none(), "it stays closed");
    }

    #[tokio::test]
    async fn open_connections_never_exceed_the_slots() {
        let (mut listener, limiter) = (listener(), limiter(1));
        let close = CancellationToken::new();
        let _callers = [
            TcpStream::connect(listener.address()).await.unwrap(),
            TcpStream::connect(listener.address()).await.unwrap(),
        ];
        let first = listener.next(&limiter, &close, no_error).await.unwrap();
        let next = listener.next(&limiter, &close, no_error);
        assert!(futures_util::FutureExt::now_or_never(next).is_none());
        drop(first);
        assert!(listener.next(&limiter, &close, no_error).await.is_some());
    }
}
