//! First phase of every request: connections. One task per connection; a request has none of its
//! own. hyper reads and writes HTTP/1.1 (`serve.rs`). This file accepts, gives each connection its
//! slot (`limiter.rs`) and does what comes before HTTP: the TLS handshake. When all slots are
//! taken, a connection of the reserve is answered once: its handler answers health checks as usual
//! and says to everything else that there is no room.

use crate::{
    connection::{Certificate, Connection, SlotGuard},
    handler::{Handler, Refused},
    limiter::Limiter,
    limits::Limits,
    listen::{Accepted, Listener},
    refusal,
    serve::serve_connection,
    shutdown::Shutdown,
    socket::Watched,
    tls,
};
use prometheus::IntGauge;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// What a peer has to speak.
#[derive(Clone, Debug)]
pub enum Security {
    /// Plain HTTP.
    Plain,
    /// TLS.
    Tls(tls::Server),
    /// TLS; a program on this machine may also speak plain HTTP. From another machine, plain HTTP
    /// is refused with [`Refused::TlsRequired`].
    TlsOrLocal(tls::Server),
}

/// One listener with the state that its connections share.
#[derive(Debug)]
pub struct Server {
    /// The port.
    pub listener: Listener,
    /// Whether it speaks TLS.
    pub security: Security,
    /// The limits on its connections.
    pub limits: Limits,
    /// How it ends.
    pub shutdown: Shutdown,
    /// Gauge of its open connections.
    pub open: Option<IntGauge>,
}

impl Server {
    /// Accepts connections until `close` is cancelled. Accept errors never end the loop.
    pub async fn serve(self, handler: impl Handler) {
        let Self { mut listener, security, limits, shutdown, open } = self;
        let limiter = Limiter::new(limits.of_listener());
        let on_error = |error: &io::Error, pause: Duration| handler.accept_failed(error, pause);
        while let Some(Accepted { stream, peer, slot }) =
            listener.next(&limiter, &shutdown.close, on_error).await
        {
            let limits = if slot.is_reserve() { limits.of_reserve() } else { limits.clone() };
            let slot_guard = SlotGuard::new(slot, open.clone());
            let opening = Opening {
                connection: Arc::new(Connection::new(peer, &limits, Some(slot_guard))),
                handler: handler.clone(),
                limits,
                close: shutdown.close.child_token(),
                cut: shutdown.cut.child_token(),
            };
            shutdown.tasks.spawn(opening.run(stream, security.clone()));
        }
    }
}

/// A connection whose first bytes have not been read.
struct Opening<H> {
    connection: Arc<Connection>,
    handler: H,
    limits: Limits,
    close: CancellationToken,
    cut: CancellationToken,
}

impl<H: Handler> Opening<H> {
    /// The connection's task.
    async fn run(self, stream: TcpStream, security: Security) {
        let connection = Arc::clone(&self.connection);
        let peer = connection.peer;
        let opened = async {
            tokio::select! {
                opened = timeout(self.limits.header_timeout, open(stream, peer, &security)) => {
                    opened.ok()
                }
                () = connection.activity.close_requested() => None,
            }
        };
        let opened = match security {
            Security::Plain => opened.await,
            // A drain does not wait for a peer that has sent no request yet.
            Security::Tls(_) | Security::TlsOrLocal(_) => {
                self.close.run_until_cancelled(opened).await.flatten()
            }
        };
        let Self { connection, handler, limits, close, cut } = self;
        match opened {
            Some(Ok(Opened::Tls(stream))) => {
                connection.set_certificate(if tls::shows_certificate(&stream) {
                    Certificate::Verified
                } else {
                    Certificate::Missing
                });
                serve_connection(*stream, connection, handler, limits, close, cut).await;
            }
            Some(Ok(Opened::Plain(stream))) => {
                connection.set_certificate(Certificate::NotRequested);
                serve_connection(stream, connection, handler, limits, close, cut).await;
            }
            Some(Ok(Opened::PlainFromRemote(stream))) => {
                if let Some(answer) = handler.refuse(Refused::TlsRequired) {
                    refusal::answer(Watched { stream, connection }, &answer).await;
                }
            }
            Some(Err(error)) => {
                tracing::debug!(%peer, %error, "TLS handshake failed; connection closed.");
            }
            None => {}
        }
    }
}

/// The first byte of a TLS handshake; no HTTP method begins with it.
const HANDSHAKE: u8 = 0x16;

enum Opened {
    Tls(Box<TlsStream<TcpStream>>),
    Plain(TcpStream),
    /// Plain HTTP from another machine: refused with a message that says to use TLS.
    PlainFromRemote(TcpStream),
}

/// What the peer speaks; with TLS, after the handshake.
async fn open(stream: TcpStream, peer: IpAddr, security: &Security) -> io::Result<Opened> {
    let tls = match security {
        Security::Plain => return Ok(Opened::Plain(stream)),
        Security::Tls(tls) => tls,
        Security::TlsOrLocal(tls) => {
            let mut first = [0];
            if stream.peek(&mut first).await? != 1 || first[0] != HANDSHAKE {
                let is_local = peer.is_loopback();
                return Ok(if is_local {
                    Opened::Plain(stream)
                } else {
                    Opened::PlainFromRemote(stream)
                });
            }
            tls
        }
    };
    Ok(Opened::Tls(Box::new(tls.accept(stream).await?)))
}

impl Server {
    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Whether peers on other machines speak TLS.
    pub fn is_secure(&self) -> bool {
        !matches!(self.security, Security::Plain)
    }
}
