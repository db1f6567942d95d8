//! A bound port and the connections that come in there: how many at once, what becomes of an error, how it
//! ends. What is said on a connection is not known here. Used by the gateway's listeners and by members' doors.
//!
//! Told to close, it still hands out what the kernel had taken in by then: whoever sees a connection established
//! may have sent a request already, and would get a reset for it.

use crate::limiter::{Admission, Limiter, Slot};
use socket2::{SockRef, TcpKeepalive};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Connections that the kernel keeps while all ours are taken.
const BACKLOG: u32 = 4096;
/// How often a newcomer looks for room where there is none: others may have become idle meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Pauses after an error that will come again at once, such as a lack of file descriptors.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// One connection.
#[derive(Debug)]
pub struct Accepted {
    /// The connection; small writes go out at once.
    pub stream: TcpStream,
    /// Who it is.
    pub peer: SocketAddr,
    /// Its place among those that may be open at once; gives it back when dropped.
    pub slot: Slot,
}

/// TCP's own questions to a peer that says nothing, so that one that vanished without a word is noticed.
#[derive(Clone, Copy, Debug)]
pub struct Probes {
    /// Silence before the first one.
    pub after: Duration,
    /// Time between two.
    pub every: Duration,
    /// How many in vain.
    pub count: u32,
}

/// A port that is bound.
#[derive(Debug)]
pub struct Listener {
    port: Port,
    address: SocketAddr,
    probes: Probes,
    pause: Duration,
    /// Accepted, and waiting for room.
    waiting: Option<(TcpStream, SocketAddr)>,
}

#[derive(Debug)]
enum Port {
    Open(TcpListener),
    /// Only what the kernel has taken in already; never more than its queue holds, or a flood would keep it open.
    Closing(std::net::TcpListener, u32),
    Closed,
}

impl Listener {
    /// Binds; port 0 takes any. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the address is taken or not ours.
    pub fn bind(address: SocketAddr, probes: Probes) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart must not wait for connections of the last run.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok(Self { port: Port::Open(listener), address, probes, pause: FIRST_PAUSE, waiting: None })
    }

    /// One that somebody else has bound, and may keep: the service manager does over a restart. Needs a tokio runtime.
    ///
    /// # Errors
    /// When it is no socket that listens.
    pub fn inherited(listener: std::net::TcpListener, probes: Probes) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        Ok(Self { port: Port::Open(listener), address, probes, pause: FIRST_PAUSE, waiting: None })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection; `None` once it is told to `close` and nobody waits any more. An error never ends it: it is
    /// told to `trouble`, with the pause that follows. May be dropped at any point; what was accepted is not lost.
    pub async fn next(
        &mut self,
        limiter: &Arc<Limiter>,
        close: &CancellationToken,
        trouble: impl Fn(&io::Error, Duration),
    ) -> Option<Accepted> {
        loop {
            if let Some((stream, peer)) = self.waiting.take() {
                match limiter.admit(peer.ip()) {
                    Admission::Slot(slot) => return Some(self.prepared(stream, peer, slot)),
                    Admission::TooMany => tracing::debug!(%peer, "Too many of one address."),
                    // Who finds no room when it closes was not going to be served.
                    Admission::Full if close.is_cancelled() => self.port = Port::Closed,
                    Admission::Full => {
                        self.waiting = Some((stream, peer));
                        let _ = timeout(LOOK_AGAIN, limiter.freed()).await;
                    }
                }
                continue;
            }
            let Port::Open(listener) = &self.port else {
                self.waiting = Some(self.accepted_before()?);
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
                Err(err) if is_of_one_connection(&err) => {}
                Err(err) => {
                    trouble(&err, self.pause);
                    // Cut short by closing: the loop's first arm sees it next.
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

    /// One that waits in the kernel's queue; the port is closed when there is none. Asks the kernel itself: the runtime
    /// may not have heard of the newest ones yet.
    fn accepted_before(&mut self) -> Option<(TcpStream, SocketAddr)> {
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
                Err(err) if is_of_one_connection(&err) => {}
                Err(_) => break,
            }
        }
        self.port = Port::Closed;
        None
    }

    /// A socket that refuses these is dead anyway; reading from it says so.
    fn prepared(&self, stream: TcpStream, peer: SocketAddr, slot: Slot) -> Accepted {
        // Heads and small bodies must not wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let Probes { after, every, count } = self.probes;
        let probes = TcpKeepalive::new().with_time(after).with_interval(every).with_retries(count);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&probes);
        Accepted { stream, peer, slot }
    }
}

/// The other side gave up before it was accepted; nothing is wrong with us.
fn is_of_one_connection(err: &io::Error) -> bool {
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

    fn no_trouble(err: &io::Error, _: Duration) {
        panic!("{err}");
    }

    #[tokio::test]
    async fn who_was_in_before_it_closed_is_served_and_nobody_after() {
        let (mut listener, places) = (listener(), limiter(100));
        let (address, close) = (listener.address(), CancellationToken::new());
        let mut callers = Vec::new();
        for _ in 0..50 {
            callers.push(TcpStream::connect(address).await.unwrap());
        }
        close.cancel();
        let mut served = 0;
        while let Some(mut accepted) = listener.next(&places, &close, no_trouble).await {
            accepted.stream.write_all(b"!").await.unwrap();
            served += 1;
        }
        assert_eq!(served, callers.len());
        for mut caller in callers {
            assert_eq!(caller.read_u8().await.unwrap(), b'!');
        }
        let refused = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(listener.next(&places, &close, no_trouble).await.is_none(), "it stays closed");
    }

    #[tokio::test]
    async fn no_more_are_open_at_once_than_there_are_places() {
        let (mut listener, places) = (listener(), limiter(1));
        let close = CancellationToken::new();
        let _callers = [
            TcpStream::connect(listener.address()).await.unwrap(),
            TcpStream::connect(listener.address()).await.unwrap(),
        ];
        let first = listener.next(&places, &close, no_trouble).await.unwrap();
        let next = listener.next(&places, &close, no_trouble);
        assert!(futures_util::FutureExt::now_or_never(next).is_none());
        drop(first);
        assert!(listener.next(&places, &close, no_trouble).await.is_some());
    }
}
