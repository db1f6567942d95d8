//! First phase: connections. Serves both listeners of the gateway, the public one and the control
//! API's.
//!
//! One task per connection; a call has none of its own. hyper reads and writes HTTP/1.1. This file
//! adds the limits that hyper leaves open: the number of connections
//! (`epsilon_fleet_link::limiter`), how long one may be idle or unread, and how one is closed. When
//! all slots are taken, a connection of the reserve is answered once: health checks as usual,
//! everything else with 503.
//!
//! ```text
//! Head ─whole head─▶ Busy ─last byte out─▶ Idle ─next byte in─▶ Head
//!   └ header_timeout: closed  │ past its deadline: cut   └ idle_timeout: closed
//! ```

pub(crate) mod activity;
mod refusal;
pub(crate) mod target;
mod transport;

use super::lookup::Addressed;
use crate::{
    call::relay::pace::PaceLimits,
    config::connections::ConnectionLimits,
    observe::{events::AcceptFailed, metrics::Metrics},
};
use activity::{Activity, Busy, Check, Watched};
use bytes::Bytes;
use epsilon_api::{body::BodyError, error::CallError, ids::RequestId, vm::InterimSink};
use epsilon_fleet_link::{
    limiter::{self, Limiter, Occupant, Slot},
    listen::{Accepted, Listener, Probes},
    tls,
};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::server::TlsStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use transport::{Exchange, Socket, Transport};

/// Detects callers that vanished without closing the connection while they wait for a slow answer
/// or a log: after some two minutes.
const PROBES: Probes =
    Probes { after: Duration::from_secs(60), every: Duration::from_secs(10), count: 9 };

/// How long a drain keeps a connection open that has sent no request yet: it was opened a moment
/// ago and its first request is probably on its way. hyper alone would close it at once.
const FIRST_REQUEST: Duration = Duration::from_millis(500);

/// The number of headers that hyper parses on its stack. Any other number costs two allocations for
/// each head.
const HYPER_STACK_HEADERS: usize = 100;

/// Answers requests. One handler per listener.
pub(crate) trait Handler: Clone + Send + Sync + 'static {
    /// The body of the answers.
    type Body: Body<Data = Bytes, Error: Into<BodyError>> + Send + Unpin + 'static;

    /// Answers one request. The future is dropped when the caller hangs up.
    fn handle(
        self,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;

    /// Called for bytes that are not a request, and for refused connections; the peer gets this
    /// error.
    fn refused(&self, _err: &CallError, _request_id: &RequestId) {}
}

/// One connection, as the later phases see it.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The peer's address, as sent in `X-Forwarded-For`.
    pub(crate) forwarded_for: HeaderValue,
    /// Address of the peer: a caller or a proxy.
    pub(crate) peer: IpAddr,
    activity: Arc<Activity>,
    exchange: Exchange,
    certificate: OnceLock<Certificate>,
    has_received_request: AtomicBool,
    /// Releases the connection slot when the last holder is dropped: the connection, an answer's
    /// body or a tunnel.
    slot_guard: Option<SlotGuard>,
}

/// Whether the peer of a connection proved with a TLS certificate that it belongs to the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Certificate {
    /// No certificate was requested: TLS is not set up, or a local program speaks plain HTTP.
    NotRequested,
    /// TLS without a client certificate: an operator, a metrics collector, git, GitHub.
    Missing,
    /// A certificate of the fleet's authority.
    Verified,
}

#[derive(Debug)]
struct SlotGuard {
    open: IntGauge,
    slot: Slot,
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl Connection {
    fn new(peer: SocketAddr, pace: PaceLimits, slot_guard: Option<SlotGuard>) -> Self {
        let peer = peer.ip().to_canonical();
        let forwarded_for = super::header_value::header(&peer.to_string());
        let activity = Arc::new(Activity::new(pace));
        if let Some(slot_guard) = &slot_guard {
            slot_guard.slot.occupy(Arc::downgrade(&activity) as Weak<dyn Occupant>);
        }
        let exchange = Exchange::default();
        let certificate = OnceLock::new();
        let has_received_request = AtomicBool::new(false);
        Self {
            forwarded_for,
            peer,
            activity,
            exchange,
            certificate,
            has_received_request,
            slot_guard,
        }
    }

    fn slot(&self) -> Option<&Slot> {
        self.slot_guard.as_ref().map(|slot_guard| &slot_guard.slot)
    }

    /// What the peer proved by its certificate.
    pub(crate) fn certificate(&self) -> Certificate {
        self.certificate.get().copied().unwrap_or(Certificate::Missing)
    }

    /// Whether it speaks TLS.
    pub(crate) fn is_secure(&self) -> bool {
        self.certificate.get().is_some_and(|shown| *shown != Certificate::NotRequested)
    }

    /// Whether there is no room for it, except to say so or to answer a health check.
    pub(crate) fn is_reserve(&self) -> bool {
        self.slot().is_some_and(Slot::is_reserve)
    }

    /// The connection became a tunnel and counts as busy until it ends.
    pub(crate) fn upgraded(&self) {
        self.activity.upgraded();
    }

    /// Sets a deadline for the answer that is being written: protects against callers that stop
    /// reading.
    pub(crate) fn answer_within(&self, limit: Duration) {
        self.activity.answer_within(limit);
    }

    /// Where the interim answers (1xx) of the current call are written.
    pub(crate) fn interim(self: &Arc<Self>, addressed: Addressed) -> Arc<dyn InterimSink> {
        self.exchange.set_addressed(addressed);
        Arc::<Self>::clone(self)
    }

    fn check(&self, limits: &ConnectionLimits, now: Instant) -> Check {
        let is_crowded = self.slot().is_some_and(Slot::is_crowded);
        self.activity.check(limits, is_crowded, now)
    }

    /// A connection without a socket.
    #[cfg(test)]
    pub(crate) fn for_test(peer: &str) -> Self {
        let pace = PaceLimits { wait_budget: Duration::from_secs(10), rate: 1024 };
        Self::new(peer.parse().unwrap(), pace, None)
    }
}

impl InterimSink for Connection {
    fn interim(&self, status: StatusCode, headers: HeaderMap) {
        self.exchange.interim(status, headers);
    }
}

/// The shutdown signals of the connections of both listeners.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shutdown {
    /// Stop accepting; let running calls finish.
    pub(crate) close: CancellationToken,
    /// Cancel deployments whose versions do not serve yet.
    pub(crate) cancel: CancellationToken,
    /// Abort everything.
    pub(crate) cut: CancellationToken,
    /// The tasks of all connections.
    pub(crate) tasks: TaskTracker,
}

/// One connection slot in this many is reserved for health checks.
const RESERVE: usize = 100;
/// How long a connection of the reserve may take to send its head.
const RESERVE_HEAD: Duration = Duration::from_secs(1);

impl ConnectionLimits {
    fn of_listener(&self) -> limiter::Limits {
        limiter::Limits {
            connections: self.max_connections,
            per_address: self.max_per_address,
            reserve: (self.max_connections / RESERVE).max(1),
            exempt: self.exempt.clone(),
        }
    }

    /// Lowers the limits to one of `share` of the files that this process may open.
    pub(crate) fn within_files(&self, share: usize) -> Self {
        let max_connections = limiter::within_files(self.max_connections, share);
        // An address keeps the same fraction of the lower total.
        let part = self.max_per_address as u128 * max_connections as u128;
        let part = part / (self.max_connections as u128).max(1);
        let max_per_address = usize::try_from(part).unwrap_or(usize::MAX).max(1);
        Self { max_connections, max_per_address, ..self.clone() }
    }

    fn of_reserve(&self) -> Self {
        Self { header_timeout: self.header_timeout.min(RESERVE_HEAD), ..self.clone() }
    }
}

/// Uses the inherited listener if there is one, else binds `address`; port 0 takes any free port.
pub(crate) fn bind(
    address: SocketAddr,
    inherited: Option<std::net::TcpListener>,
) -> io::Result<Listener> {
    match inherited {
        Some(listener) => Listener::inherited(listener, PROBES),
        None => Listener::bind(address, PROBES),
    }
}

/// One listener with the state that its connections share.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) listener: Listener,
    /// TLS for peers that begin with a handshake. If set, plain HTTP is accepted only from this
    /// machine.
    pub(crate) tls: Option<tls::Server>,
    pub(crate) limits: ConnectionLimits,
    pub(crate) shutdown: Shutdown,
    pub(crate) metrics: Arc<Metrics>,
    /// Gauge of the open connections of this listener.
    pub(crate) open: IntGauge,
}

impl Server {
    /// Accepts connections until `close` is cancelled. Accept errors never end the loop.
    pub(crate) async fn serve(self, handler: impl Handler) {
        let Self { mut listener, tls, limits, shutdown, metrics, open } = self;
        let limiter = Limiter::new(limits.of_listener());
        let on_error = |error: &io::Error, pause| AcceptFailed { error, pause }.emit(&metrics);
        while let Some(Accepted { stream, peer, slot }) =
            listener.next(&limiter, &shutdown.close, on_error).await
        {
            open.inc();
            let limits = if slot.is_reserve() { limits.of_reserve() } else { limits.clone() };
            let slot_guard = SlotGuard { open: open.clone(), slot };
            let connection = Arc::new(Connection::new(peer, limits.pace, Some(slot_guard)));
            let handler = handler.clone();
            let tls = tls.clone();
            let close = shutdown.close.child_token();
            let cut = shutdown.cut.child_token();
            shutdown.tasks.spawn(async move {
                let set_certificate = |what| connection.certificate.get_or_init(|| what);
                let Some(tls) = tls else {
                    set_certificate(Certificate::NotRequested);
                    return serve_connection(stream, connection, handler, limits, close, cut).await;
                };
                let opened = timeout(limits.header_timeout, detect_tls(stream, peer, &tls));
                let opened = async {
                    tokio::select! {
                        opened = opened => opened.ok(),
                        () = connection.activity.close_requested() => None,
                    }
                };
                // A drain does not wait for a peer that has sent no request yet.
                match close.run_until_cancelled(opened).await.flatten() {
                    Some(Ok(Opened::Tls(stream))) => {
                        set_certificate(if tls::shows_certificate(&stream) {
                            Certificate::Verified
                        } else {
                            Certificate::Missing
                        });
                        serve_connection(*stream, connection, handler, limits, close, cut).await;
                    }
                    Some(Ok(Opened::Plain(stream))) => {
                        set_certificate(Certificate::NotRequested);
                        serve_connection(stream, connection, handler, limits, close, cut).await;
                    }
                    Some(Ok(Opened::PlainFromRemote(stream))) => {
                        let err = CallError::TlsRequired;
                        let id = RequestId::random();
                        handler.refused(&err, &id);
                        refusal::answer(Watched { stream, connection }, &err, &id).await;
                    }
                    Some(Err(error)) => {
                        tracing::debug!(%peer, %error, "TLS handshake failed; connection closed.");
                    }
                    None => {}
                }
            });
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

/// TLS is required from other machines and optional for programs on this one.
async fn detect_tls(stream: TcpStream, peer: SocketAddr, tls: &tls::Server) -> io::Result<Opened> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] == HANDSHAKE {
        return Ok(Opened::Tls(Box::new(tls.accept(stream).await?)));
    }
    if peer.ip().to_canonical().is_loopback() {
        return Ok(Opened::Plain(stream));
    }
    Ok(Opened::PlainFromRemote(stream))
}

/// Serves one connection until either side closes it, a limit is exceeded, or a token is cancelled:
/// `close` lets the running answer finish, `cut` does not.
async fn serve_connection<S: Socket>(
    stream: S,
    connection: Arc<Connection>,
    handler: impl Handler,
    limits: ConnectionLimits,
    close: CancellationToken,
    cut: CancellationToken,
) {
    let service = {
        let connection = Arc::clone(&connection);
        let handler = handler.clone();
        service_fn(move |mut request| {
            let handler = handler.clone();
            let connection = Arc::clone(&connection);
            async move {
                connection.has_received_request.store(true, Relaxed);
                let busy = Busy::new(Arc::clone(&connection));
                if !connection.exchange.begin(&mut request) {
                    return Err(io::Error::other(
                        "the parsed target differs from the one that was read",
                    ));
                }
                let response = handler.handle(request, Arc::clone(&connection)).await;
                connection.exchange.begin_answer(response.status());
                Ok(response.map(|body| busy.until_end_of(body)))
            }
        })
    };
    // These futures are polled only when one of them is woken: bytes arrive some thousand times as
    // often.
    let mut events = FuturesUnordered::<BoxFuture<'_, ConnectionEvent>>::new();
    events.push(cut.cancelled().map(|()| ConnectionEvent::Cut).boxed());
    events.push(close.cancelled().map(|()| ConnectionEvent::Close).boxed());
    events.push(connection.exchange.half_closed().map(|()| ConnectionEvent::HalfClosed).boxed());
    let must_close =
        || connection.activity.close_requested().map(|()| ConnectionEvent::MakeRoom).boxed();
    events.push(must_close());
    let check_after = |after| sleep(after).map(|()| ConnectionEvent::CheckLimits).boxed();
    events.push(check_after(limits.header_timeout.min(limits.idle_timeout)));

    let watched = Watched { stream, connection: Arc::clone(&connection) };
    let mut transport = Transport::new(watched);
    let mut max_headers = limits.max_headers.min(HYPER_STACK_HEADERS);
    let mut is_closing = false;
    // The head is parsed by one parser, and by a second, larger one if it has more fields than the
    // first parses without an allocation.
    loop {
        let mut http = http1::Builder::new();
        // `activity` enforces this limit without a timer per request, and distinguishes idle from
        // slow.
        http.header_read_timeout(None).max_header_size(limits.max_header);
        http.half_close(S::DETECTS_HALF_CLOSE).keep_alive(!is_closing && !connection.is_reserve());
        if max_headers != HYPER_STACK_HEADERS {
            http.max_headers(max_headers);
        }
        let io = TokioIo::new(transport);
        let mut http = http.serve_connection(io, service.clone()).with_upgrades();
        // The status to answer before closing, if any: that of a request that could not be read.
        let ended = loop {
            // The connection first: it is nearly always what woke the task. Cancel-safe: `http`
            // lives outside the loop and the other futures stay in `events`.
            let event = tokio::select! {
                biased;
                ended = &mut http => {
                    let Err(error) = ended else { return };
                    tracing::debug!(%error, "Connection ended with an error.");
                    break error.is_parse().then_some(StatusCode::BAD_REQUEST);
                }
                Some(event) = events.next() => event,
            };
            match event {
                ConnectionEvent::Cut => return,
                ConnectionEvent::Close
                    if !is_closing && !connection.has_received_request.load(Relaxed) =>
                {
                    is_closing = true;
                    events.push(sleep(FIRST_REQUEST).map(|()| ConnectionEvent::Close).boxed());
                }
                ConnectionEvent::Close => {
                    is_closing = true;
                    Pin::new(&mut http).graceful_shutdown();
                }
                ConnectionEvent::MakeRoom => {
                    match (connection.activity.idle_for(), connection.slot()) {
                        (None, Some(slot)) => {
                            slot.keep(); // a request arrived in the meantime
                            events.push(must_close());
                        }
                        _ => return,
                    }
                }
                ConnectionEvent::HalfClosed => events.push(check_after(limits.half_close_timeout)),
                ConnectionEvent::CheckLimits => {
                    let now = Instant::now();
                    if connection.exchange.is_abandoned(limits.half_close_timeout, now) {
                        tracing::debug!(
                            "Connection closed: the caller half-closed it and made no progress."
                        );
                        return;
                    }
                    match connection.check(&limits, now) {
                        Check::WithinLimits { next_check } => events.push(check_after(next_check)),
                        Check::Exceeded(why) => {
                            tracing::debug!(why, "Connection closed.");
                            break Some(StatusCode::REQUEST_TIMEOUT);
                        }
                    }
                }
            }
        };
        let (Some(status), Some(parts)) = (ended, http.into_parts()) else { return };
        let unread = parts.read_buf;
        let transport_then = parts.io.into_inner();
        // No error is sent in the middle of an answer, nor on a connection that received nothing.
        let is_answering =
            connection.activity.is_busy() || connection.exchange.has_pending_answer();
        let status = match transport_then.refused {
            Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
                if max_headers < limits.max_headers =>
            {
                max_headers = limits.max_headers;
                transport = transport_then.again(unread);
                continue;
            }
            Some(status) => status,
            None if is_answering => return,
            None if status == StatusCode::REQUEST_TIMEOUT && unread.is_empty() => return,
            None => status,
        };
        let err = refusal::error(status);
        let id = RequestId::random();
        handler.refused(&err, &id);
        return refusal::answer(transport_then.watched, &err, &id).await;
    }
}

/// Events that end or change a connection, other than its own bytes.
enum ConnectionEvent {
    /// Abort at once.
    Cut,
    /// Close after the running answer.
    Close,
    /// The caller closed its sending half.
    HalfClosed,
    /// Another connection needs the slot: close, unless busy.
    MakeRoom,
    /// Time to check the limits.
    CheckLimits,
}
