//! The connections from this gateway to one member's listener: a pool of idle connections, TLS if
//! configured, and the token that authenticates the gateway, signed ahead of the calls. Knows HTTP,
//! but not the content of requests. Used by `remote` and by the client of a joined builder.

mod body;
pub(crate) mod error;
mod lines;

use arc_swap::ArcSwap;
pub(crate) use body::{PooledBody, once, pooled, text};
use epsilon_api::{
    body::{self as call_body, CallBody},
    fleet::Join,
    headers::{GATEWAY_TOKEN, RESERVED_PREFIX},
    ids::VmId,
    vm::InterimSink,
};
use epsilon_fleet_link::clock::Clock;
use epsilon_fleet_link::connection::{Connection, IdleConnections};
use epsilon_fleet_link::gateway_token::Signer;
use epsilon_fleet_link::tls;
use error::LinkError;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header::HOST};
use hyper::body::Incoming;
pub(crate) use lines::{lines, parsed};
use socket2::{SockRef, TcpKeepalive};
use std::{io, net::IpAddr, sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// TCP keepalive: detects a member that vanished while a call waits for it, some five seconds after
/// its last packet.
const PROBE_AFTER: Duration = Duration::from_secs(2);
const PROBE_EVERY: Duration = Duration::from_secs(1);
const PROBES: u32 = 3;

/// Time limits of a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkLimits {
    /// Longest wait for a connection, including its TLS handshake.
    pub(crate) connect: Duration,
    /// How long an idle connection stays open.
    pub(crate) idle: Duration,
}

/// What all links of a gateway share.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) signer: Arc<Signer>,
    /// The clock that dates the gateway tokens; members receive the same one.
    pub(crate) clock: Arc<Clock>,
    pub(crate) tls: Option<tls::Client>,
    pub(crate) limits: LinkLimits,
}

impl Identity {
    /// Whether this member must not be used: it speaks plain HTTP from another machine, although
    /// this gateway has certificates. Calls and gateway tokens must not travel unencrypted because
    /// the settings of one machine are incomplete.
    pub(crate) fn refuses(&self, join: &Join) -> bool {
        let host = || join.address.rsplit_once(':').map_or("", |(host, _)| host);
        let is_here = |host: &str| {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            bare == "localhost" || bare.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
        };
        self.tls.is_some() && !join.tls && !is_here(host())
    }
}

/// A connection pool to one member.
#[derive(Debug)]
pub(crate) struct Link {
    member: VmId,
    address: String,
    /// `None` if the member speaks plain HTTP.
    tls: Option<tls::Client>,
    identity: Identity,
    token: ArcSwap<HeaderValue>,
    idle: IdleConnections,
}

/// The outcome of sending a request.
#[allow(
    clippy::large_enum_variant,
    reason = "one for each call, on the stack; a box would be an allocation"
)]
pub(crate) enum Sent {
    Answered(Response<Incoming>, Connection),
    /// Nothing of the request was sent.
    Unsent(LinkError),
    /// The request may have arrived.
    Lost(LinkError),
    /// The request's own body failed.
    BadBody(hyper::Error),
}

impl Link {
    /// A link to the member that joined with this message. Opens no connection yet.
    ///
    /// # Errors
    /// If the member or the gateway lacks a certificate that the other requires.
    pub(crate) fn new(join: &Join, identity: &Identity) -> Result<Self, LinkError> {
        let unable =
            |why| Err(LinkError::Unreachable(io::Error::new(io::ErrorKind::Unsupported, why)));
        let tls = if join.tls { identity.tls.clone() } else { None };
        if join.tls && tls.is_none() {
            return unable("the member requires TLS, but `gateway.tls_certificate` is not set");
        }
        if identity.refuses(join) {
            return unable("`gateway.tls_certificate` is set, but the member speaks plain HTTP");
        }
        let link = Self {
            member: join.id.clone(),
            address: join.address.clone(),
            tls,
            identity: identity.clone(),
            token: ArcSwap::from_pointee(HeaderValue::from_static("")),
            idle: IdleConnections::new(identity.limits.idle),
        };
        link.renew_token();
        Ok(link)
    }

    /// `host:port` of the member's join message.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Signs a new token; the previous one stays valid for some time.
    pub(crate) fn renew_token(&self) {
        let token = self.identity.signer.token(&self.member, self.identity.clock.now());
        if let Ok(value) = HeaderValue::try_from(token) {
            self.token.store(Arc::new(value));
        }
    }

    /// Sends one request, on an idle connection if there is one. If that connection turns out to
    /// have been closed before anything was sent, one fresh connection replaces it. `interim`
    /// receives interim answers.
    pub(crate) async fn send(
        &self,
        mut request: Request<CallBody>,
        interim: Option<&dyn InterimSink>,
    ) -> Sent {
        request.headers_mut().insert(GATEWAY_TOKEN, HeaderValue::clone(&self.token.load()));
        let mut reused = match self.idle.reuse() {
            Some(connection) => connection.ready().await,
            None => None,
        };
        loop {
            let is_fresh = reused.is_none();
            let mut connection = match reused.take() {
                Some(connection) => connection,
                None => match self.open().await {
                    Ok(connection) => connection,
                    Err(link_error) => return Sent::Unsent(link_error),
                },
            };
            let on_interim = |status, headers| {
                if let Some(sink) = interim {
                    sink.interim(status, headers);
                }
            };
            match connection.send_unlimited(request, on_interim).await {
                Ok(response) => return self.answered(response, connection),
                Err(mut err) => match (err.take_message(), is_fresh) {
                    (Some(unsent), false) => request = unsent,
                    (Some(_), true) => {
                        return Sent::Unsent(LinkError::Disconnected(err.into_error().into()));
                    }
                    (None, _) => {
                        let err = err.into_error();
                        let own_fault = err.is_user();
                        return if own_fault {
                            Sent::BadBody(err)
                        } else {
                            Sent::Lost(LinkError::Disconnected(err.into()))
                        };
                    }
                },
            }
        }
    }

    /// A member's listener answers 401 without our headers to a token that it does not accept,
    /// before it reads the request. A gateway that was suspended for a while has an expired token:
    /// a new one is signed at once.
    fn answered(&self, response: Response<Incoming>, connection: Connection) -> Sent {
        let ours = |name: &HeaderName| name.as_str().starts_with(RESERVED_PREFIX);
        if response.status() == StatusCode::UNAUTHORIZED && !response.headers().keys().any(ours) {
            self.renew_token();
            return Sent::Unsent(LinkError::Unauthenticated);
        }
        Sent::Answered(response, connection)
    }

    /// Sends the member a request of the platform's own.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        method: Method,
        path_and_query: &str,
        body: impl Into<bytes::Bytes>,
    ) -> Result<Response<PooledBody>, LinkError> {
        let protocol_error = |err: http::Error| LinkError::Protocol(err.to_string());
        let request = Request::builder().method(method).uri(path_and_query);
        let request = request.header(HOST, self.address.as_str());
        let request = request.body(call_body::full(body)).map_err(protocol_error)?;
        match self.send(request, None).await {
            Sent::Answered(response, connection) => {
                Ok(response.map(|body| pooled(body, connection, Arc::clone(self))))
            }
            Sent::Unsent(link_error) | Sent::Lost(link_error) => Err(link_error),
            Sent::BadBody(err) => Err(LinkError::Disconnected(err.into())),
        }
    }

    /// Returns a connection whose answer was read completely to the pool.
    fn release(&self, connection: Connection) {
        self.idle.keep(connection);
    }

    async fn open(&self) -> Result<Connection, LinkError> {
        match timeout(self.identity.limits.connect, self.connect()).await {
            Ok(opened) => opened.map_err(LinkError::opening),
            Err(_) => Err(LinkError::opening(io::ErrorKind::TimedOut.into())),
        }
    }

    async fn connect(&self) -> io::Result<Connection> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let probes = TcpKeepalive::new()
            .with_time(PROBE_AFTER)
            .with_interval(PROBE_EVERY)
            .with_retries(PROBES);
        SockRef::from(&stream).set_tcp_keepalive(&probes)?;
        match &self.tls {
            None => Connection::handshake(stream).await,
            Some(tls) => {
                let host = self.address.rsplit_once(':').map_or(&*self.address, |(host, _)| host);
                Connection::handshake(tls.connect(host, stream).await?).await
            }
        }
    }
}
