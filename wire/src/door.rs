//! A member's own door: the listener where the gateways of its fleet come in, and nobody else. A request without
//! a good pass is answered 401 with nothing told, its body is not read, and its connection ends. Only
//! `GET /healthz` is answered to anybody.
//!
//! ```text
//! accept ─▶ TLS, if set (limit: head) ─▶ head (limit: head) ─▶ pass? ─▶ the member's own work ─▶ idle (limit: idle)
//! ```
//! One task per connection. What is done with a request is the handler's business; a handler is dropped when the
//! gateway hangs up. How long a connection may be silent or unread is kept in one word (`door/patience.rs`).
//! Used by agents and builders.

mod patience;

use crate::{
    connection::MAX_HEADERS,
    interim::{Interims, WithInterims},
    limiter::{self, Exempt, Limiter, Occupant, Slot},
    listen::{Accepted, Listener, Probes},
    pass::Checker,
    tls,
};
use epsilon_api::{
    body::{self, CallBody, Holding},
    headers,
    vm::InterimSink,
};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use patience::{Busy, Patience};
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
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A gateway whose machine vanished under a long call is noticed within a minute.
const PROBES: Probes =
    Probes { after: Duration::from_secs(30), every: Duration::from_secs(5), count: 6 };

/// The part of all connections that strangers at one address may have. Who has shown a pass counts no more by its address,
/// but a gateway with a burst of calls opens many connections before it has shown any.
const STRANGERS: usize = 2;

/// One of so many files that the process may open is for such a connection; each call takes one more.
const FILES: usize = 2;

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
    /// Longest wait for a TLS handshake, and for the first head; also for whoever is nobody to take the answer.
    pub head: Duration,
    /// Longest silence between two requests of a gateway, the next head included. More than gateways keep
    /// idle connections themselves, or they would send calls into closing ones.
    pub idle: Duration,
}

/// How long an answer may take until its last byte is out: an extension of a response. It guards against gateways
/// that stop reading; without it, a body of unknown length has no such limit.
#[derive(Clone, Copy, Debug)]
pub struct AnswerWithin(pub Duration);

/// How a door is told to end.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// Accept nothing more; finish what runs.
    pub close: CancellationToken,
    /// Let go of everything.
    pub cut: CancellationToken,
    /// All connections.
    pub tasks: TaskTracker,
}

/// A listener that is bound.
#[derive(Debug)]
pub struct Door {
    listener: Listener,
    tls: Option<tls::Server>,
    limits: Limits,
    ending: Ending,
}

impl Door {
    /// Binds; port 0 takes any. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the address is taken or not ours.
    pub fn bind(
        address: SocketAddr,
        tls: Option<tls::Server>,
        limits: Limits,
        ending: Ending,
    ) -> io::Result<Self> {
        Ok(Self { listener: Listener::bind(address, PROBES)?, tls, limits, ending })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Lets gateways in, until told to close. The handler is given the request, and where interim answers to it go.
    pub async fn serve<H, F>(self, checker: Arc<Checker>, handler: H)
    where
        H: Fn(Request<Incoming>, Arc<dyn InterimSink>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<CallBody>> + Send + 'static,
    {
        let admits = move |request: &Request<Incoming>, slot: &Slot| {
            let admitted = admits(&checker, request);
            if admitted {
                slot.trust();
            }
            admitted
        };
        self.accept_all(admits, handler).await;
    }

    /// Lets in whom `admits` lets in, until told to close: for those who hold no pass (`metrics.rs`).
    pub(crate) async fn serve_whom<A, H, F>(self, admits: A, handler: H)
    where
        A: Fn(&Request<Incoming>, &Slot) -> bool + Clone + Send + Sync + 'static,
        H: Fn(Request<Incoming>, Arc<dyn InterimSink>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<CallBody>> + Send + 'static,
    {
        self.accept_all(admits, handler).await;
    }

    /// Accepts until told to close. An error never ends it.
    async fn accept_all<A, H, F>(self, admits: A, handler: H)
    where
        A: Fn(&Request<Incoming>, &Slot) -> bool + Clone + Send + Sync + 'static,
        H: Fn(Request<Incoming>, Arc<dyn InterimSink>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<CallBody>> + Send + 'static,
    {
        let Self { mut listener, tls, limits, ending } = self;
        let connections = limiter::within_files(limits.connections, FILES);
        let limiter = Limiter::new(limiter::Limits {
            connections,
            per_address: (connections / STRANGERS).max(8),
            reserve: 0,
            exempt: Exempt::none(),
        });
        let trouble = |error: &io::Error, pause| {
            tracing::warn!(%error, ?pause, "Cannot accept connections; trying again.");
        };
        while let Some(Accepted { stream, slot, .. }) =
            listener.next(&limiter, &ending.close, trouble).await
        {
            let (tls, ending_of_one) = (tls.clone(), ending.clone());
            let (admits, handler) = (admits.clone(), handler.clone());
            ending.tasks.spawn(async move {
                let patience = Arc::new(Patience::new(limits.head));
                slot.occupy(Arc::downgrade(&patience) as Weak<dyn Occupant>);
                let one = Open { limits, ending: &ending_of_one, patience, slot };
                let ended = match tls {
                    None => one.speak(stream, admits, handler).await,
                    Some(tls) => match one.secure(tls.accept(stream)).await {
                        Ok(stream) => one.speak(stream, admits, handler).await,
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

/// Fields that a gateway adds to a call at most.
const OUR_HEADERS: usize = 32;

/// One connection.
struct Open<'a> {
    limits: Limits,
    ending: &'a Ending,
    patience: Arc<Patience>,
    slot: Slot,
}

impl Open<'_> {
    /// Waits for a handshake, no longer than for a head, and not when room is needed for others.
    async fn secure<T>(&self, handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        tokio::select! {
            opened = timeout(self.limits.head, handshake) => {
                opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            }
            () = self.patience.asked_to_close() => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    /// Serves it to its end.
    async fn speak<S, A, H, F>(self, stream: S, admits: A, handler: H) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        A: Fn(&Request<Incoming>, &Slot) -> bool,
        H: Fn(Request<Incoming>, Arc<dyn InterimSink>) -> F,
        F: Future<Output = Response<CallBody>> + Send + 'static,
    {
        let Self { limits, ending, patience, slot } = self;
        let interims = Arc::<Interims>::default();
        let service = service_fn(|request: Request<Incoming>| {
            interims.begin(request.version());
            let admitted = admits(&request, &slot);
            let after = if admitted { limits.idle } else { limits.head };
            let busy = Busy::begin(&patience, after);
            let work = match admitted {
                true => Ok(handler(request, Arc::<Interims>::clone(&interims))),
                false => Err(unknown_caller(&request)),
            };
            async move {
                let response = match work {
                    Ok(work) => work.await,
                    Err(response) => response,
                };
                Ok::<_, Infallible>(busy.answer(response))
            }
        });
        // Its own limit on heads would be a timer per request, and would not know idle from slow.
        let http = http1::Builder::new()
            .header_read_timeout(None)
            // What a gateway lets through, and what it adds.
            .max_headers(MAX_HEADERS + OUR_HEADERS)
            .serve_connection(
                TokioIo::new(WithInterims::new(stream, Arc::clone(&interims))),
                service,
            )
            .with_upgrades();
        let (mut http, mut closing) = (pin!(http), pin!(ending.close.cancelled()));
        let mut look = pin!(sleep_until(Instant::now() + limits.head));
        let mut is_closing = false;
        loop {
            // Nothing is lost by any of these being polled again: they are pinned outside of the loop, and a
            // token that was cancelled stays so.
            tokio::select! {
                biased; // the connection is nearly always the reason for waking up
                ended = http.as_mut() => return ended.map_err(io::Error::other),
                () = ending.cut.cancelled() => return Ok(()),
                () = closing.as_mut(), if !is_closing => {
                    is_closing = true;
                    http.as_mut().graceful_shutdown();
                }
                () = patience.asked_to_close() => match patience.idle_for() {
                    Some(_) => return Err(io::ErrorKind::ConnectionAborted.into()),
                    None => slot.keep(), // a request came in that moment
                },
                () = look.as_mut() => match patience.left() {
                    Some(left) => look.as_mut().reset(Instant::now() + left.min(limits.head)),
                    None => return Err(io::ErrorKind::TimedOut.into()),
                },
            }
        }
    }
}

fn admits(checker: &Checker, request: &Request<Incoming>) -> bool {
    let pass = request.headers().get(headers::PASS).and_then(|pass| pass.to_str().ok());
    pass.is_some_and(|pass| checker.admits_now(pass))
}

/// Whoever has no pass learns that somebody is here, and nothing else: not even what kind of member this is.
fn unknown_caller(request: &Request<Incoming>) -> Response<CallBody> {
    let asks_for_health = request.method() == Method::GET && request.uri().path() == "/healthz";
    let (status, text) =
        if asks_for_health { (StatusCode::OK, "ok\n") } else { (StatusCode::UNAUTHORIZED, "") };
    let mut response = Response::new(body::full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// What a door answers: its connection is busy to the last byte.
type Answered = Response<Holding<CallBody, Busy>>;

#[cfg(test)]
mod tests;
