//! A member's authenticated listener: serves only the gateways of its fleet. A request
//! without a valid gateway token is answered with a bare 401, its body is not read, and its
//! connection ends. Only `GET /healthz` is answered without a token.
//!
//! ```text
//! accept ─▶ TLS, if set ─▶ head ─▶ token? ─▶ the member's handler ─▶ idle
//!           limit: head    limit: head                              limit: idle
//! ```
//! Connections are `epsilon_http_server`'s; this file sets their limits and checks the token. What
//! a request means is the handler's business; a handler is dropped when the gateway hangs up. Used
//! by agents and builders.

use crate::connection::MAX_HEADERS;
use crate::gateway_token::Verifier;
use crate::tls;
use bytes::Bytes;
use epsilon_api::{
    body::{self, CallBody},
    headers,
    vm::InterimSink,
};
use epsilon_http_server::{
    Connection, Handler, Refused, Security, Server, Shutdown,
    limiter::{self, Exempt},
    listen::{Listener, Probes},
    pace::PaceLimits,
};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

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
    /// Longest wait for a TLS handshake and for the first head.
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
pub struct AuthenticatedListener(Server);

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
        Ok(Self(Server {
            listener: Listener::bind(address, PROBES)?,
            security: tls.map_or(Security::Plain, Security::Tls),
            limits: limits.of_server(),
            shutdown,
            open: None,
        }))
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Serves gateways until `close`. The handler gets the request and a sink for interim
    /// answers.
    pub async fn serve<H, F>(self, verifier: Arc<Verifier>, handler: H)
    where
        H: Fn(Request<Incoming>, Arc<dyn InterimSink>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<CallBody>> + Send + 'static,
    {
        let admits = move |request: &Request<Incoming>, connection: &Connection| {
            let admitted = admits(&verifier, request);
            if admitted {
                connection.trust();
            }
            admitted
        };
        self.serve_authorized(admits, handler).await;
    }

    /// Serves requests that `admits` accepts, until `close`: for clients without a gateway
    /// token (`metrics.rs`).
    pub(crate) async fn serve_authorized<A, H, F>(self, admits: A, handler: H)
    where
        A: Fn(&Request<Incoming>, &Connection) -> bool + Clone + Send + Sync + 'static,
        H: Fn(Request<Incoming>, Arc<dyn InterimSink>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<CallBody>> + Send + 'static,
    {
        self.0.serve(Authorized { admits, handler }).await;
    }
}

/// Header fields that a gateway adds to a call at most.
const GATEWAY_HEADERS: usize = 32;
/// Bytes of a head: what hyper's read buffer holds.
const MAX_HEADER: usize = 408 << 10;

impl Limits {
    fn of_server(self) -> epsilon_http_server::Limits {
        let max_connections = limiter::within_files(self.connections, OPEN_FILES_SHARE);
        epsilon_http_server::Limits {
            max_connections,
            max_per_address: (max_connections / PER_ADDRESS_SHARE).max(8),
            exempt: Exempt::none(),
            has_reserve: false,
            // A tunnel is a call that runs: instances limit these.
            counts_tunnels: false,
            max_header: MAX_HEADER,
            // The fields that a gateway lets through, and those that it adds.
            max_headers: MAX_HEADERS + GATEWAY_HEADERS,
            header_timeout: self.head,
            idle_timeout: self.idle,
            // A gateway keeps idle connections of its own for almost as long.
            crowded_idle_timeout: self.idle,
            // A gateway reads as fast as its caller, whose pace is the gateway's business.
            pace: PaceLimits::NONE,
            // A gateway that closes its half has given up the call.
            half_close_timeout: None,
            unread_end_timeout: Some(self.idle),
        }
    }
}

/// Passes on what is authorized.
#[derive(Clone)]
struct Authorized<A, H> {
    admits: A,
    handler: H,
}

impl<A, H, F> Handler for Authorized<A, H>
where
    A: Fn(&Request<Incoming>, &Connection) -> bool + Clone + Send + Sync + 'static,
    H: Fn(Request<Incoming>, Arc<dyn InterimSink>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<CallBody>> + Send + 'static,
{
    type Body = CallBody;

    async fn handle(
        self,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> Response<CallBody> {
        if !(self.admits)(&request, &connection) {
            return unauthorized(&request);
        }
        let interim = Arc::<Connection>::clone(&connection);
        let mut response = (self.handler)(request, interim).await;
        if let Some(AnswerWithin(limit)) = response.extensions_mut().remove() {
            connection.answer_within(limit);
        }
        response
    }

    /// A bare status, as for a request without a token.
    fn refuse(&self, why: Refused) -> Option<Response<Bytes>> {
        let status = match why {
            Refused::Malformed => StatusCode::BAD_REQUEST,
            Refused::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Refused::TargetTooLong => StatusCode::URI_TOO_LONG,
            Refused::HeadTooSlow | Refused::TlsRequired => return None,
        };
        let mut answer = Response::new(Bytes::new());
        *answer.status_mut() = status;
        Some(answer)
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

#[cfg(test)]
mod tests;
