//! A member's authenticated listener: serves only the gateways of its fleet. A request
//! without a valid gateway token is answered with a bare 401, its body is not read, and its
//! connection ends. Only `GET /healthz` is answered without a token.
//!
//! ```text
//! accept ─▶ TLS, if set ─▶ head ─▶ token? ─▶ the member's handler ─▶ idle
//!           limit: head    limit: head                              limit: idle
//! ```
//! One task per connection. What a request means is the handler's business; a handler is dropped
//! when the gateway hangs up. The time limit of a connection is one atomic word
//! (`authenticated_listener/deadline.rs`). Used by agents and builders.

mod deadline;

use crate::connection::MAX_HEADERS;
use crate::gateway_token::Verifier;
use crate::tls;
use deadline::{ConnectionDeadline, RequestGuard};
use epsilon_api::{
    body::{self, CallBody, Holding},
    headers,
    vm::InterimSink,
};
use epsilon_http_server::{
    Shutdown,
    interim::{InterimQueue, WithInterims},
    limiter::{self, Exempt, Limiter, Occupant, Slot},
    listen::{Accepted, Listener, Probes},
};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until, timeout},
};

/// A gateway whose machine vanished during a long call is noticed within a minute.
const PROBES: Probes =
    Probes { after: Duration::from_secs(30), every: Duration::from_secs(5), count: 6 };

/// Divisor: the share of all connections that unauthenticated peers at one address may hold. A peer
/// that has shown a token is not counted by address any more, but a gateway with a burst of calls
/// opens many connections before it has shown any.
const PER_ADDRESS_SHARE: usize = 2;

/// Divisor: the share of the process's open files for these connections; each call takes one file
/// more.
const OPEN_FILES_SHARE: usize = 2;

/// Limits on connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections at most; more wait in the kernel's queue.
    pub connections: usize,
    /// Longest wait for a TLS handshake and for the first head; also for an unauthenticated peer to
    /// read its answer.
    pub head: Duration,
    /// Longest silence between two requests of a gateway, the next head included. Must exceed the
    /// gateways' own idle limit, or they would send calls on closing connections.
    pub idle: Duration,
}

/// How long an answer may take until its last byte is written: an extension of a response. It
/// guards against gateways that stop reading; without it, a body of unknown length has no such
/// limit.
#[derive(Clone, Copy, Debug)]
pub struct AnswerWithin(pub Duration);

/// A bound listener.
#[derive(Debug)]
pub struct AuthenticatedListener {
    listener: Listener,
    tls: Option<tls::Server>,
    limits: Limits,
    shutdown: Shutdown,
}

impl AuthenticatedListener {
    /// Binds the address; port 0 picks a free one. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the address is in use or not one of this machine.
    pub fn bind(
        address: SocketAddr,
        tls: Option<tls::Server>,
        limits: Limits,
        shutdown: Shutdown,
    ) -> io::Result<Self> {
        Ok(Self { listener: Listener::bind(address, PROBES)?, tls, limits, shutdown })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Serves gateways until `close`. The handler gets the request and a sink for interim
    /// answers.
    pub async fn serve<H, F>(self, verifier: Arc<Verifier>, handler: H)
    where
        H: Fn(Request<Incoming>, Arc<dyn InterimSink>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<CallBody>> + Send + 'static,
    {
        let admits = move |request: &Request<Incoming>, slot: &Slot| {
            let admitted = admits(&verifier, request);
            if admitted {
                slot.trust();
            }
            admitted
        };
        self.accept_all(admits, handler).await;
    }

    /// Serves requests that `admits` accepts, until `close`: for clients without a gateway
    /// token (`metrics.rs`).
    pub(crate) async fn serve_authorized<A, H, F>(self, admits: A, handler: H)
    where
        A: Fn(&Request<Incoming>, &Slot) -> bool + Clone + Send + Sync + 'static,
        H: Fn(Request<Incoming>, Arc<dyn InterimSink>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<CallBody>> + Send + 'static,
    {
        self.accept_all(admits, handler).await;
    }

    /// Accepts until `close`. An accept error never ends it.
    async fn accept_all<A, H, F>(self, admits: A, handler: H)
    where
        A: Fn(&Request<Incoming>, &Slot) -> bool + Clone + Send + Sync + 'static,
        H: Fn(Request<Incoming>, Arc<dyn InterimSink>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<CallBody>> + Send + 'static,
    {
        let Self { mut listener, tls, limits, shutdown } = self;
        let connections = limiter::within_files(limits.connections, OPEN_FILES_SHARE);
        let limiter = Limiter::new(limiter::Limits {
            connections,
            per_address: (connections / PER_ADDRESS_SHARE).max(8),
            reserve: 0,
            exempt: Exempt::none(),
        });
        let on_accept_error = |error: &io::Error, pause| {
            tracing::warn!(%error, ?pause, "Listener cannot accept connections; retrying after a pause.");
        };
        while let Some(Accepted { stream, slot, .. }) =
            listener.next(&limiter, &shutdown.close, on_accept_error).await
        {
            let tls = tls.clone();
            let connection_shutdown = shutdown.clone();
            let admits = admits.clone();
            let handler = handler.clone();
            shutdown.tasks.spawn(async move {
                let deadline = Arc::new(ConnectionDeadline::new(limits.head));
                slot.occupy(Arc::downgrade(&deadline) as Weak<dyn Occupant>);
                let one = Open { limits, shutdown: &connection_shutdown, deadline, slot };
                let ended = match tls {
                    None => one.serve_connection(stream, admits, handler).await,
                    Some(tls) => match one.secure(tls.accept(stream)).await {
                        Ok(stream) => one.serve_connection(stream, admits, handler).await,
                        Err(err) => Err(err),
                    },
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "Connection ended.");
                }
            });
        }
    }
}

/// Header fields that a gateway adds to a call at most.
const GATEWAY_HEADERS: usize = 32;

/// An open connection.
struct Open<'a> {
    limits: Limits,
    shutdown: &'a Shutdown,
    deadline: Arc<ConnectionDeadline>,
    slot: Slot,
}

impl Open<'_> {
    /// Waits for a TLS handshake, at most as long as for a head, and not when the limiter asks to
    /// close.
    async fn secure<T>(&self, handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        tokio::select! {
            opened = timeout(self.limits.head, handshake) => {
                opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            }
            () = self.deadline.close_requested() => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    /// Serves HTTP on the connection to its end.
    async fn serve_connection<S, A, H, F>(self, stream: S, admits: A, handler: H) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        A: Fn(&Request<Incoming>, &Slot) -> bool,
        H: Fn(Request<Incoming>, Arc<dyn InterimSink>) -> F,
        F: Future<Output = Response<CallBody>> + Send + 'static,
    {
        let Self { limits, shutdown, deadline, slot } = self;
        let interims = Arc::<InterimQueue>::default();
        let service = service_fn(|request: Request<Incoming>| {
            interims.begin(request.version());
            let admitted = admits(&request, &slot);
            let after = if admitted { limits.idle } else { limits.head };
            let busy = RequestGuard::begin(&deadline, after);
            let work = if admitted {
                Ok(handler(request, Arc::<InterimQueue>::clone(&interims)))
            } else {
                Err(unauthorized(&request))
            };
            async move {
                let response = match work {
                    Ok(work) => work.await,
                    Err(response) => response,
                };
                Ok::<_, Infallible>(busy.answer(response))
            }
        });
        // hyper's own limit on heads would be a timer per request, and cannot distinguish idle from
        // slow.
        let http = http1::Builder::new()
            .header_read_timeout(None)
            // The fields that a gateway lets through, and those that it adds.
            .max_headers(MAX_HEADERS + GATEWAY_HEADERS)
            .serve_connection(
                TokioIo::new(WithInterims::new(stream, Arc::clone(&interims))),
                service,
            )
            .with_upgrades();
        let mut http = pin!(http);
        let mut closing = pin!(shutdown.close.cancelled());
        let mut check_at = pin!(sleep_until(Instant::now() + limits.head));
        let mut is_closing = false;
        loop {
            // Cancel-safe: all futures are pinned outside of the loop, and a cancelled token stays
            // cancelled.
            tokio::select! {
                biased; // the connection is nearly always the reason for waking up
                ended = http.as_mut() => return ended.map_err(io::Error::other),
                () = shutdown.cut.cancelled() => return Ok(()),
                () = closing.as_mut(), if !is_closing => {
                    is_closing = true;
                    http.as_mut().graceful_shutdown();
                }
                () = deadline.close_requested() => match deadline.idle_for() {
                    Some(_) => return Err(io::ErrorKind::ConnectionAborted.into()),
                    None => slot.keep(), // a request arrived meanwhile
                },
                () = check_at.as_mut() => match deadline.left() {
                    Some(left) => check_at.as_mut().reset(Instant::now() + left.min(limits.head)),
                    None => return Err(io::ErrorKind::TimedOut.into()),
                },
            }
        }
    }
}

fn admits(verifier: &Verifier, request: &Request<Incoming>) -> bool {
    let token = request.headers().get(headers::GATEWAY_TOKEN).and_then(|token| token.to_str().ok());
    token.is_some_and(|token| verifier.verify_now(token))
}

/// Answer without a valid token: 401 and nothing else, not even what kind of member this is.
fn unauthorized(request: &Request<Incoming>) -> Response<CallBody> {
    let asks_for_health = request.method() == Method::GET && request.uri().path() == "/healthz";
    let (status, text) =
        if asks_for_health { (StatusCode::OK, "ok\n") } else { (StatusCode::UNAUTHORIZED, "") };
    let mut response = Response::new(body::full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A response that keeps its connection busy until the last byte is written.
type BusyResponse = Response<Holding<CallBody, RequestGuard>>;

#[cfg(test)]
mod tests;
