//! First phase: connections. Both listeners of the gateway are served here: the public one and the
//! control API's.
//!
//! One task per connection; a call has none of its own. hyper reads and writes HTTP/1.1; this file adds
//! what it leaves open: how many connections, how long one may be silent or unread, how it ends.
//!
//! ```text
//! Head ─whole head─▶ Busy ─last byte out─▶ Idle ─next byte in─▶ Head
//!   └ header_timeout: closed  │ past its deadline: cut   └ idle_timeout: closed
//! ```

pub(crate) mod activity;

use super::caller_address;
use crate::{
    call::relay::pace::PaceLimits,
    config::ConnectionLimits,
    observe::{events::AcceptFailed, metrics::Metrics},
};
use activity::{Activity, Busy, Check, Watched};
use bytes::Bytes;
use epsilon_api::body::BodyError;
use epsilon_wire::{
    listen::{Accepted, Listener, Probes},
    tls,
};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http::{HeaderValue, Request, Response};
use http_body::Body;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::server::TlsStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Finds callers that vanished without a word while they wait for a slow answer or a log, after some two minutes.
const PROBES: Probes =
    Probes { after: Duration::from_secs(60), every: Duration::from_secs(10), count: 9 };

/// What hyper parses on its stack.
const HYPERS_MAX_HEADERS: usize = 100;

/// Answers requests. One per listener.
pub(crate) trait Handler: Clone + Send + Sync + 'static {
    /// The body of its answers.
    type Body: Body<Data = Bytes, Error: Into<BodyError>> + Send + Unpin + 'static;

    /// Answers one request. Dropped when the caller hangs up.
    fn handle(
        self,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// One connection, as the phases after this one see it.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The other end's address, as `X-Forwarded-For` tells it.
    pub(crate) forwarded_for: HeaderValue,
    /// The other end: a caller or a proxy.
    pub(crate) peer: IpAddr,
    activity: Activity,
    /// Gives its place back when the last holder is gone: connection, answer's body or tunnel.
    _place: Option<Place>,
}

#[derive(Debug)]
struct Place {
    open: IntGauge,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl Connection {
    fn new(peer: SocketAddr, pace: PaceLimits, place: Option<Place>) -> Self {
        let peer = peer.ip().to_canonical();
        let forwarded_for = caller_address::header(&peer.to_string());
        Self { forwarded_for, peer, activity: Activity::new(pace), _place: place }
    }

    /// The answer that goes out now must be over by then. It guards against callers that stop reading.
    pub(crate) fn answer_within(&self, limit: Duration) {
        self.activity.answer_within(limit);
    }

    /// A connection without a socket.
    #[cfg(test)]
    pub(crate) fn for_test(peer: &str) -> Self {
        let pace = PaceLimits { patience: Duration::from_secs(10), rate: 1024 };
        Self::new(peer.parse().unwrap(), pace, None)
    }
}

/// How the connections of both listeners are told to end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ending {
    /// Accept nothing more; finish what runs.
    pub(crate) close: CancellationToken,
    /// Let go of everything.
    pub(crate) cut: CancellationToken,
    /// All tasks of connections.
    pub(crate) tasks: TaskTracker,
}

/// Binds a listener; port 0 takes any.
pub(crate) fn bind(address: SocketAddr) -> io::Result<Listener> {
    Listener::bind(address, PROBES)
}

/// One listener with what its connections share.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) listener: Listener,
    /// Spoken with who begins with it; then plain HTTP is for this machine only.
    pub(crate) tls: Option<tls::Server>,
    pub(crate) limits: ConnectionLimits,
    pub(crate) ending: Ending,
    pub(crate) metrics: Arc<Metrics>,
    /// Connections that are open at this door.
    pub(crate) open: IntGauge,
}

impl Door {
    /// Accepts until told to close. An error never ends it.
    pub(crate) async fn serve(self, handler: impl Handler) {
        let Self { mut listener, tls, limits, ending, metrics, open } = self;
        let places = Arc::new(Semaphore::new(limits.max_connections));
        let trouble = |error: &io::Error, pause| AcceptFailed { error, pause }.emit(&metrics);
        while let Some(Accepted { stream, peer, place }) =
            listener.next(&places, &ending.close, trouble).await
        {
            open.inc();
            let place = Place { open: open.clone(), _permit: place };
            let connection = Arc::new(Connection::new(peer, limits.pace, Some(place)));
            let (handler, tls) = (handler.clone(), tls.clone());
            let (close, cut) = (ending.close.child_token(), ending.cut.child_token());
            ending.tasks.spawn(async move {
                let Some(tls) = tls else {
                    return serve_connection(stream, connection, handler, limits, close, cut).await;
                };
                let opened = timeout(limits.header_timeout, secure(stream, peer, &tls));
                // A drain does not wait for who has not asked anything yet.
                match close.run_until_cancelled(opened).await {
                    Some(Ok(Ok(Opened::Tls(stream)))) => {
                        serve_connection(*stream, connection, handler, limits, close, cut).await;
                    }
                    Some(Ok(Ok(Opened::Plain(stream)))) => {
                        serve_connection(stream, connection, handler, limits, close, cut).await;
                    }
                    Some(Ok(Err(error))) => tracing::debug!(%peer, %error, "No TLS came about."),
                    Some(Err(_)) | None => {}
                }
            });
        }
    }
}

/// The first byte of a TLS handshake; no HTTP method begins so.
const HANDSHAKE: u8 = 0x16;

enum Opened {
    Tls(Box<TlsStream<TcpStream>>),
    Plain(TcpStream),
}

/// Who comes over a network has to speak TLS; a program on this machine need not.
async fn secure(stream: TcpStream, peer: SocketAddr, tls: &tls::Server) -> io::Result<Opened> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] == HANDSHAKE {
        return Ok(Opened::Tls(Box::new(tls.accept(stream).await?)));
    }
    if peer.ip().to_canonical().is_loopback() {
        return Ok(Opened::Plain(stream));
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "plain HTTP from another machine"))
}

/// Serves one connection to its end. Input: its bytes. Stopped by either side, by its limits, or by the
/// tokens: `close` lets the answer that runs finish, `cut` does not.
async fn serve_connection<S>(
    stream: S,
    connection: Arc<Connection>,
    handler: impl Handler,
    limits: ConnectionLimits,
    close: CancellationToken,
    cut: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = {
        let connection = Arc::clone(&connection);
        service_fn(move |request| {
            let (handler, connection) = (handler.clone(), Arc::clone(&connection));
            async move {
                let busy = Busy::new(Arc::clone(&connection));
                let response = handler.handle(request, connection).await;
                Ok::<_, Infallible>(response.map(|body| busy.until_end_of(body)))
            }
        })
    };
    let io = TokioIo::new(Watched { stream, connection: Arc::clone(&connection) });
    let mut http = http1::Builder::new();
    // `activity` does this without a timer per request, and knows idle from slow.
    http.header_read_timeout(None).max_header_size(limits.max_header);
    if limits.max_headers != HYPERS_MAX_HEADERS {
        // Any other number costs an allocation per request.
        http.max_headers(limits.max_headers);
    }
    let http = http.serve_connection(io, service).with_upgrades();
    let mut http = pin!(http);
    // Asked only once one of them has something to say: bytes come some thousand times as often.
    let mut asides = FuturesUnordered::<BoxFuture<'_, Aside>>::new();
    asides.push(cut.cancelled().map(|()| Aside::Cut).boxed());
    asides.push(close.cancelled().map(|()| Aside::Close).boxed());
    let look = |after| sleep(after).map(|()| Aside::Look).boxed();
    asides.push(look(limits.header_timeout.min(limits.idle_timeout)));
    loop {
        // The connection first: it is nearly always the reason for waking up. Nothing is lost by polling it again, it is
        // pinned outside of the loop; the asides keep themselves.
        let aside = tokio::select! {
            biased;
            ended = http.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "Connection ended.");
                }
                return;
            }
            Some(aside) = asides.next() => aside,
        };
        match aside {
            Aside::Cut => return,
            Aside::Close => http.as_mut().graceful_shutdown(),
            Aside::Look => match connection.activity.check(&limits, Instant::now()) {
                Check::Fine { again_in } => asides.push(look(again_in)),
                Check::Over(why) => {
                    tracing::debug!(why, "Connection closed.");
                    return;
                }
            },
        }
    }
}

/// What ends or changes a connection besides its own bytes.
enum Aside {
    /// Everything ends now.
    Cut,
    /// After the answer that runs.
    Close,
    /// Is one of its limits over?
    Look,
}
