//! The control API, `/v1`, on its own listener: used by the CLI and by operators. Its messages are
//! those of `epsilon_api::admin`; nothing here is on the path of a call.
//!
//! `/healthz` and `/v1/openapi.json` need no key: they reveal nothing about the functions.
//! `/metrics` needs none from this machine. Everything else requires `Authorization: Bearer <key>`;
//! requests of fleet members also require a certificate of the fleet's authority if TLS is set up.
//!
//! Until the gateway serves, every path answers 503 with the current step of the start
//! (`startup.rs`).
//!
//! When a client hangs up, reads are dropped. A change that has begun (rollback, delete,
//! activation) runs to its end, because half of a change would be worse.

pub(crate) mod address;
mod audit;
mod auth;
mod autoscaler;
mod builders;
mod deployments;
pub(crate) mod error;
mod fleet;
mod functions;
mod git;
mod github;
mod keys;
mod logs;
mod openapi;
mod query;
mod routes;
pub(crate) mod startup;
mod traffic;
mod vms;

use crate::deploy::Deploys;
use crate::fleet::Fleet;
use crate::fleet::link::Identity;
use crate::functions::Functions;
use crate::health::{Health, Report};
use crate::keys::ApiKeys;
use crate::observe::audit::Audit;
use crate::observe::events::AcceptFailed;
use crate::reconcile::drain_prewarm::DrainPrewarm;
use crate::refusal;
use crate::routes::Routes;
use crate::source::git::GitHost;
use crate::source::github::Hooks;
use crate::store_health::StoreHealth;
use crate::urls::Urls;
use axum::{
    Json, Router,
    body::Body,
    extract::State,
    middleware,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use epsilon_api::{
    admin::Data,
    error::{ErrorBody, ErrorEnvelope},
    headers::{CONTROL, LISTENER, REQUEST_ID, request_id},
    ids::RequestId,
};
use epsilon_autoscaler::Journal;
use epsilon_http_server::{
    Connection, Handler, Refused,
    limited::{BodyLimits, Limited, waits_for_continue},
};
use epsilon_store::Store;
use error::ApiError;
use http::{
    HeaderMap, HeaderValue, Request, StatusCode,
    header::{ALLOW, CONTENT_TYPE, RETRY_AFTER},
};
use hyper::body::Incoming;
use prometheus::{Registry, TextEncoder};
use routes::Groups;
use startup::{Starting, Startup};
use std::{future::Future, io, sync::Arc, time::Duration};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_service::Service;

/// State of the handlers.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) drain_prewarm: DrainPrewarm,
    pub(crate) autoscaler: Arc<Journal>,
    pub(crate) watch: Arc<StoreHealth>,
    pub(crate) health: Arc<Health>,
    pub(crate) api_keys: Arc<ApiKeys>,
    pub(crate) audit: Audit,
    /// Limits concurrent joins and heartbeats.
    pub(crate) joining: Semaphore,
    pub(crate) functions: Arc<Functions>,
    pub(crate) deploys: Arc<Deploys>,
    pub(crate) hooks: Arc<Hooks>,
    /// How this gateway authenticates to members.
    pub(crate) identity: Identity,
    pub(crate) urls: Urls,
    pub(crate) registry: Registry,
    pub(crate) body_limits: BodyLimits,
    /// Progress of the gateway's start.
    pub(crate) startup: Startup,
    /// The gateway stops: streams end.
    pub(crate) close: CancellationToken,
    /// The drain time is over: deployments that do not serve yet are cancelled.
    pub(crate) cancel: CancellationToken,
    /// Work that outlives its request.
    pub(crate) background: TaskTracker,
    pub(crate) git: Arc<GitHost>,
}

impl Control {
    /// Runs `work` to its end even if the client hangs up.
    async fn run_to_completion<T, F>(&self, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        self.background.spawn(work).await.unwrap_or_else(|err| Err(error::internal(&err)))
    }
}

type Shared = State<Arc<Control>>;

fn router(control: &Arc<Control>) -> Router {
    let Groups { stored, in_memory, members, local, open } = Groups::all();
    let store = middleware::from_fn_with_state(Arc::clone(control), auth::require_store);
    let key_unless_local =
        middleware::from_fn_with_state(Arc::clone(control), auth::require_key_unless_local);
    let api = stored
        .route_layer(store)
        .merge(in_memory)
        .route_layer(middleware::from_fn_with_state(Arc::clone(control), audit::record))
        .route_layer(middleware::from_fn_with_state(Arc::clone(control), auth::require_key))
        .merge(members.route_layer(middleware::from_fn(auth::require_certificate)))
        .merge(local.route_layer(key_unless_local))
        .merge(open);
    Router::from(api)
        // For git, whose authentication and errors have another form; not part of the document.
        .merge(git::router())
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .with_state(Arc::clone(control))
}

/// Health of the gateway.
///
/// `degraded` and `unavailable` have a `reason` that an operator must act on; an unavailable gateway
/// cannot serve calls while another one may (`GET /` of the public listener is 503 then).
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "healthz",
    responses(
        (status = 200, description = "The control API answers.", body = Data<Report>),
        (status = 503, description = "The gateway is starting.", body = Data<Starting>),
    ),
    security(()),
)]
async fn healthz(State(control): Shared) -> Json<Data<Report>> {
    Json(query::data(control.health.report()))
}

/// Metrics in Prometheus' text format.
///
/// Without the key from the same machine only.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    responses((status = 200, description = "The metrics.", body = String, content_type = "text/plain")),
    security((), ("key" = [])),
)]
async fn metrics(State(control): Shared) -> Result<Response, ApiError> {
    let text = TextEncoder::new()
        .encode_to_string(&control.registry.gather())
        .map_err(|err| error::internal(&err))?;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

async fn not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "NOT_FOUND", "no such path")
        .hint("`GET /v1/openapi.json` lists the paths")
}

async fn method_not_allowed() -> ApiError {
    let message = "this path does not support this method";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", message)
        .hint("`GET /v1/openapi.json` lists the methods of each path")
}

/// The control API as a handler of its listener.
#[derive(Clone, Debug)]
pub(crate) struct ControlHandler {
    router: Router,
    control: Arc<Control>,
}

impl ControlHandler {
    pub(crate) fn new(control: Arc<Control>) -> Self {
        Self { router: router(&control), control }
    }

    /// Limits the body whatever the answer is: the sender of a large archive must be able to read
    /// why it was refused.
    fn body(&self, headers: &HeaderMap, body: Incoming) -> Body {
        let Control { body_limits, deploys, .. } = &*self.control;
        let waits = waits_for_continue(headers);
        let counter = deploys.metrics.source_bytes.clone();
        Body::new(Limited::new(body, *body_limits, waits, counter))
    }
}

impl Handler for ControlHandler {
    type Body = Body;

    async fn handle(mut self, request: Request<Incoming>, connection: Arc<Connection>) -> Response {
        let (mut head, body) = request.into_parts();
        let address = connection.peer;
        let certificate = connection.certificate();
        head.extensions.insert(auth::Peer { address, certificate });
        let id = request_id(&head.headers);
        let body = self.body(&head.headers, body);
        let mut response = if connection.is_reserve() && head.uri.path() != "/healthz" {
            error::gateway_full().into_response()
        } else if let Some(starting) = self.control.startup.answer(head.uri.path()) {
            starting
        } else {
            let Ok(response) = self.router.call(Request::from_parts(head, body)).await;
            response
        };
        if let Some(mut error) = response.extensions_mut().remove::<ErrorBody>() {
            // The request id, which the error must contain, is known only here.
            error.request_id = Some(id.clone());
            let status = response.status();
            let mut headers = std::mem::take(response.headers_mut());
            response = Json(ErrorEnvelope { error }).into_response();
            *response.status_mut() = status;
            for name in [RETRY_AFTER, ALLOW] {
                if let Some(value) = headers.remove(&name) {
                    response.headers_mut().insert(name, value);
                }
            }
        }
        if let Ok(value) = HeaderValue::from_str(id.as_str()) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        response.headers_mut().insert(LISTENER, CONTROL);
        response
    }
    fn refuse(&self, why: Refused) -> Option<http::Response<Bytes>> {
        Some(refusal::answer(&refusal::error(why), &RequestId::random()))
    }

    fn accept_failed(&self, error: &io::Error, pause: Duration) {
        AcceptFailed { error, pause }.emit(&self.control.deploys.metrics);
    }
}
