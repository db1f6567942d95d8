//! The builder's listener: gateways of its fleet send archives and read the progress. One request
//! is one build; a gateway that hangs up cancels it. Builds are run by the `Builder`;
//! authentication is done by [`epsilon_fleet_link::authenticated_listener`].
//!
//! ```text
//! POST /v1/builds?… ─▶ build slot (503 without) ─▶ 200 at once ─▶ archive is read
//!                                       built | failed ◀─ progress, line by line ◀─┘
//! ```
//! The 200 is sent before the archive is read: until then the gateway may still choose another
//! builder.

mod progress;

use crate::error::{self, Hint};
use epsilon_api::{
    body::{self, CallBody},
    build::{self, BuildError, BuildJob, BuildMessage, BuildOrder, Builder, BuilderStatus},
    chain::Chain,
    error::ErrorBody,
    units::Bytes,
};
use epsilon_bootstrap::metrics::VERSION;
use epsilon_fleet_link::authenticated_listener::AuthenticatedListener;
use epsilon_fleet_link::gateway_token::Verifier;
use epsilon_fleet_link::{authenticated_listener, tls};
use epsilon_http_server::Shutdown;
use futures_util::FutureExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use progress::Progress;
use std::{io, net::SocketAddr, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Largest body of other requests: an image's name.
const LARGEST_ORDER: usize = 64 << 10;
/// How long cut builds may take to report their end and to clean up.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Limits of the listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Limits on connections and heads.
    pub connections: authenticated_listener::Limits,
    /// Builds that run or wait for a slot.
    pub builds: usize,
    /// Largest archive in bytes.
    pub archive: Bytes,
}

/// A bound listener that does not serve yet.
#[derive(Debug)]
pub struct BoundListener {
    listener: AuthenticatedListener,
    verifier: Arc<Verifier>,
    server: Arc<BuilderServer>,
    shutdown: Shutdown,
}

/// Shared by all requests.
#[derive(Debug)]
struct BuilderServer {
    builder: Arc<dyn Builder>,
    limits: Limits,
    slots: Arc<Semaphore>,
    builds: TaskTracker,
    /// Cancels every build.
    stop: CancellationToken,
}

impl BoundListener {
    /// Binds the address; port 0 picks a free one. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the address is in use or not one of this machine.
    pub fn bind(
        address: SocketAddr,
        tls: Option<tls::Server>,
        limits: Limits,
        verifier: Arc<Verifier>,
        builder: Arc<dyn Builder>,
    ) -> io::Result<Self> {
        let shutdown = Shutdown::default();
        let listener =
            AuthenticatedListener::bind(address, tls, limits.connections, shutdown.clone())?;
        let server = BuilderServer {
            builder,
            limits,
            slots: Arc::new(Semaphore::new(limits.builds)),
            builds: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        Ok(Self { listener, verifier, server: Arc::new(server), shutdown })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Starts serving.
    pub fn spawn(self) -> Running {
        let Self { listener, verifier, server, shutdown } = self;
        let answering = Arc::clone(&server);
        shutdown.tasks.spawn(listener.serve(verifier, move |request, _| {
            let server = Arc::clone(&answering);
            async move { answer(&server, request).await }
        }));
        Running { server, shutdown }
    }
}

/// A serving listener.
#[derive(Debug)]
pub struct Running {
    server: Arc<BuilderServer>,
    shutdown: Shutdown,
}

impl Running {
    /// Builds that run or wait for a slot.
    pub fn builds(&self) -> usize {
        self.server.builds.len()
    }

    /// Refuses new builds, lets running ones finish within the grace, then cuts them. Returns how
    /// many were cut.
    pub async fn drain(self, grace: Duration) -> usize {
        let Self { server, shutdown } = self;
        shutdown.close.cancel();
        server.builds.close();
        shutdown.tasks.close();
        let over = async { tokio::join!(server.builds.wait(), shutdown.tasks.wait()) };
        let mut over = std::pin::pin!(over);
        if tokio::time::timeout(grace, over.as_mut()).await.is_ok() {
            return 0;
        }
        let cut = server.builds.len();
        server.stop.cancel();
        if tokio::time::timeout(CLOSE_TIMEOUT, over.as_mut()).await.is_err() {
            shutdown.cut.cancel(); // no gateway reads the last message
        }
        cut
    }
}

/// Answers a request with a valid gateway token.
async fn answer(server: &Arc<BuilderServer>, request: Request<Incoming>) -> Response<CallBody> {
    if request.uri().path() == build::REMOVE_PATH && request.method() == Method::POST {
        return remove(server, request.into_body()).await;
    }
    if request.uri().path() == build::STATUS_PATH && request.method() == Method::GET {
        return status(server);
    }
    if request.uri().path() != build::PATH || request.method() != Method::POST {
        let message = "a builder answers `POST /v1/builds`, `POST /v1/images/remove`, `GET /v1/status` and nothing else";
        return error_response(
            ErrorBody::new(StatusCode::NOT_FOUND, "NOT_FOUND", message, None),
            404,
        );
    }
    let order = request.uri().query().and_then(BuildOrder::from_query);
    let Some(order) = order else {
        let message =
            "the query is not a valid build order; do gateway and builder have the same version?";
        let error = ErrorBody::new(StatusCode::BAD_REQUEST, "INVALID_PARAMETER", message, None);
        return error_response(error, 400);
    };
    let limit = server.limits.archive;
    if request.body().size_hint().lower() > limit.get() {
        let error = error::source_too_large(format!("the archive is larger than {limit}"));
        return error_response(error.body(), error.status.as_u16());
    }
    let Ok(slot) = Arc::clone(&server.slots).try_acquire_owned() else {
        let error = error::busy(format!(
            "this builder already has {} running or waiting builds",
            server.limits.builds
        ));
        return error_response(error.body(), error.status.as_u16());
    };
    let (progress, lines) = progress::channel(&server.stop);
    server.builds.spawn(work(Arc::clone(server), order, request.into_body(), progress, slot));
    let mut response = Response::new(lines);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

fn status(server: &BuilderServer) -> Response<CallBody> {
    let builds = u32::try_from(server.builds.len()).unwrap_or(u32::MAX);
    let status = BuilderStatus { version: VERSION.to_owned(), builds };
    let mut response = Response::new(body::full(serde_json::to_vec(&status).unwrap_or_default()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Runs one build to its end. Stopped when its gateway hangs up, and when the builder shuts down.
async fn work(
    server: Arc<BuilderServer>,
    order: BuildOrder,
    archive: Incoming,
    progress: Progress,
    _slot: OwnedSemaphorePermit,
) {
    let deployment = order.deployment.clone();
    let job = BuildJob {
        deployment: order.deployment,
        archive: body::boxed(archive),
        folder: order.folder,
        only: order.only,
        log: progress.as_build_log(),
    };
    tracing::info!(%deployment, "Build started.");
    let building = AssertUnwindSafe(server.builder.build(job)).catch_unwind();
    let built = tokio::select! {
        biased; // shutdown before results; dropping a build cleans up after it
        () = progress.stopped() => Ok(Err(cut(&server))),
        built = building => built,
    };
    let last = match built {
        Ok(Ok(built)) => BuildMessage::Built(built),
        Ok(Err(error)) => BuildMessage::Failed(error),
        Err(_panic) => {
            BuildMessage::Failed(error::internal("a bug in the builder ended the build"))
        }
    };
    match &last {
        BuildMessage::Failed(error) => {
            tracing::info!(%deployment, code = %error.code, error = %Chain(error), "Build failed.");
        }
        BuildMessage::Built(_) | BuildMessage::Alive | BuildMessage::Event(_) => {
            tracing::info!(%deployment, "Build done.");
        }
    }
    progress.end(last).await;
}

/// Removes an image that no version needs any more. Limits are those of the destination; a gateway
/// that hangs up cancels it.
async fn remove(server: &BuilderServer, body: Incoming) -> Response<CallBody> {
    let text = Limited::new(body, LARGEST_ORDER).collect().await;
    let image = text.ok().and_then(|text| serde_json::from_slice(&text.to_bytes()).ok());
    let Some(image) = image else {
        let message = "the body is not an image; do gateway and builder have the same version?";
        let error = ErrorBody::new(StatusCode::BAD_REQUEST, "INVALID_PARAMETER", message, None);
        return error_response(error, 400);
    };
    match server.builder.remove(image).await {
        Ok(()) => {
            let mut done = Response::new(body::empty());
            *done.status_mut() = StatusCode::NO_CONTENT;
            done
        }
        Err(error) => error_response(error.body(), error.status.as_u16()),
    }
}

/// The error of a cut build. The first is sent to the gateway; the second only reaches the log.
fn cut(server: &BuilderServer) -> BuildError {
    if server.stop.is_cancelled() {
        error::stopped("the builder was stopped before the build ended").hint("deploy again")
    } else {
        error::stopped("the gateway hung up")
    }
}

fn error_response(error: ErrorBody, status: u16) -> Response<CallBody> {
    let mut response = Response::new(body::full(error.to_json()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
