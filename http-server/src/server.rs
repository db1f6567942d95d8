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
use epsilon_api::chain::Chain;
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
    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Whether peers on other machines speak TLS.
    pub fn is_secure(&self) -> bool {
        !matches!(self.security, Security::Plain)
    }

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
        let peer = self.connection.peer;
        let opened = match &security {
            Security::Plain => Some(Ok(Opened::Plain(stream))),
            Security::Tls(tls) => self.before_http(handshake(stream, tls)).await,
            Security::TlsOrLocal(tls) => self.before_http(detect_tls(stream, peer, tls)).await,
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
                tracing::debug!(%peer, error = %Chain(&error), "TLS handshake failed; connection closed.");
            }
            None => {}
        }
    }

    /// What comes before HTTP. `None`: it took too long, or there is no room for the connection any
    /// more, or the listener closes: a drain does not wait for a peer that has sent no request.
    async fn before_http<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let in_time = timeout(self.limits.header_timeout, work);
        let wanted = async {
            tokio::select! {
                done = in_time => done.ok(),
                () = self.connection.activity.close_requested() => None,
            }
        };
        self.close.run_until_cancelled(wanted).await.flatten()
    }
}

enum Opened {
    Tls(Box<TlsStream<TcpStream>>),
    Plain(TcpStream),
    /// Plain HTTP from another machine: refused with a message that says to use TLS.
    PlainFromRemote(TcpStream),
}

async fn handshake(stream: TcpStream, tls: &tls::Server) -> io::Result<Opened> {
    Ok(Opened::Tls(Box::new(tls.accept(stream).await?)))
}

/// The first byte of a TLS handshake; no HTTP method begins with it.
const HANDSHAKE: u8 = 0x16;

/// TLS is required from other machines and optional for programs on this one.
async fn detect_tls(stream: TcpStream, peer: IpAddr, tls: &tls::Server) -> io::Result<Opened> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] == HANDSHAKE {
        return handshake(stream, tls).await;
    }
    if peer.is_loopback() {
        return Ok(Opened::Plain(stream));
    }
    Ok(Opened::PlainFromRemote(stream))
}
