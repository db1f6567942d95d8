//! One call, from its head to the last byte of its answer. [`Calls::handle`] names the phases in
//! the order in which they run:
//!
//! ```text
//! accept → caller_address → http_rules → lookup → version → buffer → invoke → reply
//! ```
//!
//! | phase | what it decides |
//! |---|---|
//! | accept | `epsilon_http_server`: whether the connection, and a head that can be read, are taken at all |
//! | `caller_address` | who calls, through trusted proxies |
//! | `http_rules` | whether the request is one; its declared length is judged after the lookup |
//! | `lookup` | which function, or which version by its address |
//! | `version` | which version, if the function's calls are split |
//! | `buffer` | reads the first bytes of the body; `relay/headers.rs` has cleaned the head before |
//! | `invoke` | `invoke.rs`: place ⇄ attempt, and whether another VM may be tried |
//! | `reply` | the answer, and the record of the call, which begins with its address |
//!
//! A call has no task of its own: it runs inside its connection's future. When the caller hangs up,
//! that future is dropped and releases the lease, the body and the record; no other cleanup is
//! needed.

pub(crate) mod buffer;
pub(crate) mod caller_address;
pub(crate) mod header_value;
pub(crate) mod http_rules;
pub(crate) mod lookup;
pub(crate) mod relay;
pub(crate) mod reply;

mod version;
pub(crate) mod version_addresses;

use crate::invoke::outgoing::Outgoing;
use crate::invoke::{Invoked, Invoker};
use crate::{
    config::Config,
    health::Health,
    networks::Networks,
    observe::{
        events::{AcceptFailed, CallFailed},
        metrics::Metrics,
    },
    refusal,
    routes::{Route, Routes, version_cache::VersionCache},
};
use buffer::Buffers;
use bytes::Bytes;
use caller_address::CallerAddress;
use epsilon_api::{
    error::{CallError, VmError},
    headers::{RawTarget, request_id},
    ids::{RequestId, VersionNumber},
    vm::{Answer, Held},
};
use epsilon_http_server::{
    Connection, Handler, Refused, WRITE_SLACK,
    limited::{BodyLimits, LINGER, Limited, waits_for_continue},
};
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{CONNECTION, SET_COOKIE},
};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use lookup::negative_lookup::NegativeLookup;
use lookup::{Addressed, Target, raw_target};
use relay::upgrade::Tunnel;
use reply::{CallRecord, ReplyBody};
use std::{io, sync::Arc, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use version::Chosen;
use version_addresses::VersionAddresses;

/// The call path: state shared by all calls of the public listener.
#[derive(Debug)]
pub(crate) struct Calls {
    routes: Arc<Routes>,
    version_cache: Arc<VersionCache>,
    version_addresses: VersionAddresses,
    /// Read-through of unknown names; set only where several gateways share the store.
    negative_lookup: Option<Arc<NegativeLookup>>,
    health: Arc<Health>,
    invoker: Invoker,
    metrics: Arc<Metrics>,
    domain: Option<String>,
    trusted_proxies: Networks,
    body_limits: BodyLimits,
    buffers: Buffers,
    /// Running calls, upgraded ones included.
    running: TaskTracker,
    /// Cancels upgraded streams when the gateway shuts down.
    stop: CancellationToken,
}

impl Calls {
    pub(crate) fn new(
        config: &Config,
        routes: Arc<Routes>,
        version_cache: Arc<VersionCache>,
        version_addresses: VersionAddresses,
        negative_lookup: Option<Arc<NegativeLookup>>,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let stop = CancellationToken::new();
        Self {
            routes,
            version_cache,
            version_addresses,
            negative_lookup,
            invoker: Invoker::new(
                config,
                Arc::clone(&health.fleet),
                Arc::clone(&metrics),
                stop.clone(),
            ),
            health,
            metrics,
            domain: config.domain.clone(),
            trusted_proxies: config.trusted_proxies.clone(),
            body_limits: BodyLimits {
                size: config.max_body,
                linger: LINGER,
                pace: config.pace,
                clean_trailers: relay::headers::clean_trailers,
            },
            buffers: Buffers::new(),
            running: TaskTracker::new(),
            stop,
        }
    }

    /// The cache of versions that are called by their own address.
    pub(crate) fn version_cache(&self) -> &Arc<VersionCache> {
        &self.version_cache
    }

    /// The read-through of unknown names, if the store is shared.
    pub(crate) fn negative_lookup(&self) -> Option<&Arc<NegativeLookup>> {
        self.negative_lookup.as_ref()
    }

    /// Tracks the running calls; a drain waits for it.
    pub(crate) fn running(&self) -> &TaskTracker {
        &self.running
    }

    /// Cuts the upgraded streams.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    async fn handle(
        &self,
        request: Request<Incoming>,
        connection: &Arc<Connection>,
    ) -> Response<ReplyBody> {
        let request_id = request_id(request.headers());
        let metrics = Arc::clone(&self.metrics);
        let running = self.running.token();
        let address = CallerAddress::of(connection, request.headers(), &self.trusted_proxies);
        let mut record = CallRecord::begin(metrics, request_id, &request, &address, running);
        let is_tunnel = *request.method() == Method::CONNECT;

        let (request, target) = match self.lookup_and_permit(request).await {
            Ok(found) => found,
            Err(err) => {
                let mut response = reply::error(&err, record);
                if is_tunnel {
                    // The bytes that follow a CONNECT are not a request, so the connection cannot
                    // be reused.
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                return response;
            }
        };
        let (route, target, addressed, version) = match target {
            Target::Health => return reply::health(&self.health.report(), record),
            _ if connection.is_reserve() => return reply::error(&CallError::GatewayFull, record),
            Target::Function(route, target, addressed) => (route, target, addressed, None),
            Target::Version(route, number, target, addressed) => {
                (route, target, addressed, Some(number))
            }
        };
        let Chosen { route, cookie } = match (version, route.split()) {
            (None, None) => Chosen { route, cookie: None },
            (None, Some(split)) => version::choose(split, request.headers()),
            (Some(number), _) => {
                let name = &route.version.function;
                if let Err(err) =
                    self.version_addresses.admit(name, number, request.headers()).await
                {
                    return reply::error(&err, record);
                }
                match self.version_cache.find(&route, number).await {
                    Ok(route) => Chosen { route, cookie: None },
                    Err(err) => return reply::error(&err, record),
                }
            }
        };
        record.route = Some(Arc::clone(&route));
        let prefix = prefix(&route, addressed, version);
        let (mut request, caller_upgrade) =
            Self::prepare(request, target, connection, address, prefix);
        if addressed == Addressed::ByPath
            && let Some(raw) = request.extensions_mut().remove::<RawTarget>()
            && let Some(raw) = raw_target::below_name(&raw)
        {
            request.extensions_mut().insert(raw);
        }
        let (head, body) = request.into_parts();
        let (body, upload) = match self.buffers.read(body).await {
            Ok(read) => read,
            Err(err) => return reply::error(&err.into(), record),
        };
        let request = Request::from_parts(head, body);
        let request_id = record.request_id().clone();
        let call = Outgoing::new(Arc::clone(&route.version), request_id, request, upload)
            .with_interim(connection.interim(relay::headers::clean_interim(addressed)));
        let mut response = match self.invoker.invoke(&route, call).await {
            Ok(Invoked { answer, in_flight }) => {
                record.in_flight = Some(in_flight);
                self.reply(answer, caller_upgrade, &route, addressed, record, connection)
            }
            Err(err) => reply::error(&err.into(), record),
        };
        if let Some(cookie) = cookie {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
        response
    }

    /// Finds the target of the call and checks that the request may continue. The body of a refused
    /// request is discarded in the background.
    async fn lookup_and_permit(
        &self,
        request: Request<Incoming>,
    ) -> Result<(Request<Limited<Incoming>>, Target), CallError> {
        let waits = waits_for_continue(request.headers());
        let declared = http_rules::body_size(request.body(), self.body_limits.size);
        let request = request.map(|body| {
            let counter = self.metrics.bytes_in.clone();
            Limited::new(body, self.body_limits, waits, counter)
        });
        http_rules::coding(request.headers())?;
        let host = http_rules::host(&request)?;
        let target =
            match (self.lookup(request.method(), request.uri(), host), &self.negative_lookup) {
                (Err(CallError::FunctionNotFound(name)), Some(negative_lookup)) => {
                    let method = request.method().clone();
                    let uri = request.uri().clone();
                    let host = host.to_owned();
                    if !negative_lookup.query(&name).await {
                        return Err(CallError::FunctionNotFound(name));
                    }
                    self.lookup(&method, &uri, &host)?
                }
                (found, _) => found?,
            };
        declared?;
        Ok((request, target))
    }

    fn lookup(&self, method: &Method, uri: &Uri, host: &str) -> Result<Target, CallError> {
        lookup::lookup(&self.routes.table(), self.domain.as_deref(), method, uri, host)
    }

    /// The request as the function receives it, and the caller's half of an upgrade.
    fn prepare(
        mut request: Request<Limited<Incoming>>,
        target: Uri,
        connection: &Connection,
        address: CallerAddress,
        prefix: Option<HeaderValue>,
    ) -> (Request<Limited<Incoming>>, Option<OnUpgrade>) {
        let caller_upgrade = request.extensions_mut().remove::<OnUpgrade>();
        let headers = request.headers_mut();
        let upgrade = relay::headers::clean_request(headers, caller_upgrade.is_some());
        address.write_to(headers, connection, prefix);
        *request.uri_mut() = target;
        (request, caller_upgrade.filter(|_| upgrade.is_some()))
    }

    fn reply(
        &self,
        mut answer: Answer,
        caller_upgrade: Option<OnUpgrade>,
        route: &Route,
        addressed: Addressed,
        mut record: CallRecord,
        connection: &Arc<Connection>,
    ) -> Response<ReplyBody> {
        let left = route.version.spec.timeout.saturating_sub(answer.spent.exec);
        connection.answer_within(left + WRITE_SLACK);
        let request_id = record.request_id().clone();
        if answer.response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return reply::answer(answer, addressed, &request_id, Some(record));
        }
        let extensions = answer.response.extensions_mut();
        let function_upgrade = extensions.remove::<OnUpgrade>();
        let held = extensions.remove::<Held>();
        let (Some(caller), Some(function)) = (caller_upgrade, function_upgrade) else {
            let err = VmError::FunctionCrashed {
                function: route.version.function.clone(),
                cause: "the function answered 101 to a request without an upgrade".into(),
            };
            return reply::error(&err.into(), record);
        };
        record.answered(StatusCode::SWITCHING_PROTOCOLS);
        let stop = self.stop.clone();
        let connection = Arc::clone(connection);
        Tunnel { caller, function, held, left, stop, record, connection }.open();
        reply::answer(answer, addressed, &request_id, None)
    }
}

/// The path prefix that the gateway removed, as the caller wrote it. Stored with a function's
/// route; built for a version, which is called rarely.
fn prefix(
    route: &Route,
    addressed: Addressed,
    version: Option<VersionNumber>,
) -> Option<HeaderValue> {
    match (addressed, version) {
        (Addressed::ByHost, _) => None,
        (Addressed::ByPath, None) => Some(route.prefix.clone()),
        (Addressed::ByPath, Some(number)) => {
            let name = &route.version.function;
            Some(header_value::header(&format!("/{name}{}{number}", lookup::IN_PATH)))
        }
    }
}

/// The public listener.
#[derive(Clone, Debug)]
pub(crate) struct CallHandler(pub(crate) Arc<Calls>);

impl Handler for CallHandler {
    type Body = ReplyBody;

    async fn handle(
        self,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> Response<ReplyBody> {
        self.0.handle(request, &connection).await
    }

    fn refuse(&self, why: Refused) -> Option<Response<Bytes>> {
        let (error, request_id) = (refusal::error(why), RequestId::random());
        CallFailed { error: &error, request_id: &request_id, route: None }.emit(&self.0.metrics);
        Some(refusal::answer(&error, &request_id))
    }

    fn accept_failed(&self, error: &io::Error, pause: Duration) {
        AcceptFailed { error, pause }.emit(&self.0.metrics);
    }
}

#[cfg(test)]
mod tests;
