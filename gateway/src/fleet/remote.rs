//! A VM reached through its agent's listener: implements the trait `Vm` over HTTP (messages:
//! `epsilon_api::fleet`). In `epsilon up` the agent itself implements that trait; users of the
//! trait see no difference.
//!
//! | file | what it does |
//! |---|---|
//! | `call` | a call and its answer over HTTP |
//! | `known_versions` | which versions the agent knows, since its last restart |
//! | `orders` | orders that are repeated in the background until the agent has taken them |
//!
//! Its reports are received by `fleet/watch.rs`, which also marks it as lost.

mod call;
mod known_versions;
pub(crate) mod outbox;

use super::link;
use super::link::error::LinkError;
use super::link::{Identity, Link, lines, parsed};
use super::view::VersionKey;
use arc_swap::ArcSwap;
use epsilon_api::{
    chain::Chain,
    error::VmError,
    fleet::{Join, Refusal},
    function::{ImageRef, Version},
    headers::REFUSAL,
    ids::{FunctionName, VersionId},
    log::{LogQuery, LogRecord},
    units::Bytes,
    vm::{Answer, Call, ImageRemoval, Vm, VmState, VmStatus},
};
use epsilon_fleet_link::single_flight::SingleFlight;
use futures_util::{
    FutureExt, StreamExt, TryFutureExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use http::{Method, Response};
use known_versions::KnownVersions;
use outbox::Orders;
use serde::Serialize;
use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::timeout;

/// Longest body of a refusal: a code and a short text, or a stack trace of user code.
const LONGEST_REFUSAL: usize = 256 << 10;
/// Path of the order to remove an image, which has an answer.
const REMOVE_IMAGE: &str = "/v1/images/remove";
/// Longest line of a log; agents cut lines at 16 KiB.
const LONGEST_LOG_LINE: usize = 256 << 10;

/// Time limits for one VM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// For orders that a VM executes at once.
    pub(crate) order: Duration,
    /// For what precedes a call: a queue, a pull, a start.
    pub(crate) start: Duration,
}

/// A VM on another machine.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) link: Arc<Link>,
    timeouts: Timeouts,
    known_versions: KnownVersions,
    announcing: SingleFlight<VersionKey, LinkError>,
    orders: Orders,
    last: ArcSwap<VmStatus>,
    /// The VM was silent for so long that pending calls stop waiting for it.
    lost: AtomicBool,
}

impl Remote {
    /// The VM that joined with this message. Opens no connection yet.
    ///
    /// # Errors
    /// If it can never be reached from here.
    pub(crate) fn new(
        join: &Join,
        identity: &Identity,
        timeouts: Timeouts,
    ) -> Result<Self, LinkError> {
        Ok(Self {
            link: Arc::new(Link::new(join, identity)?),
            timeouts,
            known_versions: KnownVersions::default(),
            announcing: SingleFlight::default(),
            orders: Orders::default(),
            last: ArcSwap::from_pointee(never_reported(join)),
            lost: AtomicBool::new(false),
        })
    }

    /// Takes over a report. The images are stored in the member's view, which needs less memory.
    pub(crate) fn reported(&self, status: &VmStatus) {
        self.known_versions.set_boot(status.boot);
        self.lost.store(false, Ordering::Relaxed);
        self.last.store(Arc::new(VmStatus { images: Vec::new(), ..status.clone() }));
    }

    /// Its report stream broke off: the agent may have restarted, so the next call announces its
    /// version again.
    pub(crate) fn invalidate_versions(&self) {
        self.known_versions.invalidate_versions();
    }

    /// Pending calls stop waiting for its answers.
    pub(crate) fn mark_lost(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Ensures that the agent knows the version and does not retire it. Of concurrent calls, one
    /// announces it.
    async fn announce(&self, version: &Version, key: VersionKey) -> Result<(), LinkError> {
        let knows = || self.known_versions.knows(key).then_some(());
        if knows().is_some() {
            return Ok(());
        }
        let announce = async {
            self.orders.keep(&version.id()).await;
            let boot = self.known_versions.boot();
            self.order(Method::PUT, "/v1/version", version).await?;
            self.known_versions.add(key, boot);
            Ok(())
        };
        self.announcing.ensure(&key, knows, announce).await.map_err(LinkError::Shared)
    }

    /// Sends an order that the agent executes at once.
    async fn order<T: Serialize>(
        &self,
        verb: Method,
        path: &str,
        what: &T,
    ) -> Result<(), LinkError> {
        let work = async {
            let response = self.link.ask(verb, path, json(what)?).await?;
            if response.status().is_success() {
                return Ok(());
            }
            Err(LinkError::Protocol(format!("status {} for {path}", response.status())))
        };
        let limit = self.timeouts.order;
        timeout(limit, work).await.unwrap_or(Err(LinkError::TimedOut(limit)))
    }

    /// Has the agent prepare a version, which takes up to the time of a start.
    async fn prepare(&self, path: &'static str, version: Arc<Version>) -> Result<(), VmError> {
        let function = || version.function.clone();
        let key = VersionKey::of_version(&version);
        self.orders.keep(&version.id()).await;
        let boot = self.known_versions.boot();
        let work = async {
            let body = json(&*version).map_err(|link_error| link_error.before(function()))?;
            let answered = self.link.ask(Method::POST, path, body).await;
            let response = answered.map_err(|link_error| link_error.before(function()))?;
            if response.status().is_success() {
                self.known_versions.add(key, boot);
                return Ok(());
            }
            Err(self.refusal(response, &version).await)
        };
        let limit = self.timeouts.start;
        let done = timeout(limit, work).await;
        done.unwrap_or_else(|_| Err(LinkError::TimedOut(limit).before(function())))
    }

    /// Reads why the agent refused a request.
    async fn refusal(&self, response: Response<link::PooledBody>, version: &Version) -> VmError {
        let function = version.function.clone();
        if !response.headers().contains_key(REFUSAL) {
            return LinkError::Protocol(response.status().to_string()).after(function);
        }
        let read = timeout(self.timeouts.order, link::text(response.into_body(), LONGEST_REFUSAL));
        let text = read.await.unwrap_or(Err(LinkError::TimedOut(self.timeouts.order)));
        let refusal = text.and_then(|text| {
            serde_json::from_slice(&text).map_err(|err| LinkError::Protocol(err.to_string()))
        });
        match refusal {
            Ok(Refusal::UnknownVersion) => {
                self.known_versions.forget(VersionKey::of_version(version));
                Refusal::UnknownVersion.into_error(function, version.spec.timeout)
            }
            Ok(refusal) => refusal.into_error(function, version.spec.timeout),
            Err(link_error) => link_error.after(function),
        }
    }
}

impl Vm for Remote {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, VmError>> {
        self.send(call).boxed()
    }

    fn ensure_ready(&self, version: Arc<Version>) -> BoxFuture<'_, Result<(), VmError>> {
        self.prepare("/v1/ready", version).boxed()
    }

    fn fetch(&self, version: Arc<Version>) -> BoxFuture<'_, Result<(), VmError>> {
        self.prepare("/v1/fetch", version).boxed()
    }

    fn remove_image(&self, image: ImageRef) -> BoxFuture<'_, Result<ImageRemoval, VmError>> {
        let work = async move {
            let response = self.link.ask(Method::POST, REMOVE_IMAGE, json(&image)?).await?;
            let status = response.status();
            if !status.is_success() {
                return Err(LinkError::Protocol(format!("status {status} for {REMOVE_IMAGE}")));
            }
            let text = link::text(response.into_body(), LONGEST_REFUSAL).await?;
            serde_json::from_slice(&text).map_err(|err| LinkError::Protocol(err.to_string()))
        };
        let limit = self.timeouts.order;
        let removal = timeout(limit, work);
        removal
            .map(move |done| done.unwrap_or(Err(LinkError::TimedOut(limit))))
            .map_err(|link_error| VmError::Internal(Box::new(link_error)))
            .boxed()
    }

    fn forget(&self, function: &FunctionName) {
        self.orders.forget(function);
    }

    fn retire(&self, version: &VersionId) {
        self.known_versions.forget(VersionKey::of(&version.function, version.number));
        self.orders.retire(version);
    }

    fn logs(&self, function: &FunctionName, query: LogQuery) -> BoxStream<'static, LogRecord> {
        let path = log_path(function, &query);
        let link = Arc::clone(&self.link);
        let limit = self.timeouts.order;
        let opened = async move {
            let answered = timeout(limit, link.ask(Method::GET, &path, "")).await;
            match answered.unwrap_or(Err(LinkError::TimedOut(limit))) {
                Ok(response) if response.status().is_success() => {
                    lines(response.into_body(), LONGEST_LOG_LINE).left_stream()
                }
                Ok(response) => {
                    let status = response.status();
                    stream::iter([Err(LinkError::Protocol(status.to_string()))]).right_stream()
                }
                Err(link_error) => stream::iter([Err(link_error)]).right_stream(),
            }
        };
        let records = opened.flatten_stream().map(|line| parsed(&line?));
        // A VM that cannot be reached has no lines; those of the other VMs are still delivered.
        let id = self.last.load().id.clone();
        let records = records.scan((), move |(), record: Result<LogRecord, LinkError>| {
            let record = record.inspect_err(|err| tracing::warn!(vm = %id, error = %Chain(err), "Log of the VM broke off; lines of other VMs continue."));
            std::future::ready(record.ok())
        });
        records.boxed()
    }

    fn status(&self) -> VmStatus {
        VmStatus::clone(&self.last.load())
    }

    fn drain(&self, draining: bool) {
        self.orders.drain(draining);
    }
}

fn json<T: Serialize>(what: &T) -> Result<Vec<u8>, LinkError> {
    serde_json::to_vec(what).map_err(|err| LinkError::Protocol(err.to_string()))
}

fn log_path(function: &FunctionName, query: &LogQuery) -> String {
    let mut path = format!("/v1/logs/{function}?follow={}", query.follow);
    // Writing to a string cannot fail; ids contain no characters that need escaping.
    if let Some(id) = &query.request_id {
        let _ = write!(path, "&request_id={id}");
    }
    if let Some(tail) = query.tail {
        let _ = write!(path, "&tail={tail}");
    }
    if let Some(after) = query.after {
        let _ = write!(path, "&after={after}");
    }
    path
}

/// The status of a VM before its first report.
fn never_reported(join: &Join) -> VmStatus {
    VmStatus {
        cells: Default::default(),
        keeps: Vec::new(),
        id: join.id.clone(),
        state: VmState::Ready,
        boot: 0,
        version: None,
        certificate_ends_at: None,
        cpu_millicores: join.cpu,
        memory_bytes: join.memory_bytes,
        memory_used_bytes: Bytes(0),
        calls_active: 0,
        calls_waiting: 0,
        instances: Vec::new(),
        images: Vec::new(),
    }
}
