//! The agent's own listener: what gateways of its fleet request of this VM (`epsilon_api::fleet`
//! lists it). Authentication is done by [`epsilon_fleet_link::authenticated_listener`]; calls are
//! handled by `call.rs`, which does not know whether its gateway is in this process.
//!
//! ```text
//! listener: token? ─▶ x-epsilon-version? ─ yes ─▶ serve/calls.rs ═▶ call.rs
//!                        │ no                    │ serve/versions.rs: versions that gateways sent
//!                        └─▶ serve/orders.rs     └ serve/upload.rs, serve/tunnel.rs: request bodies, upgrades
//!                              └─▶ serve/reports.rs: the VM's state, each second
//! ```

mod calls;
mod orders;
mod reports;
mod tunnel;
mod upload;
mod versions;

use crate::{service::VmService, vm::LocalVm};
use epsilon_api::{
    body::{self, CallBody},
    fleet::Refusal,
    headers,
    vm::InterimSink,
};
use epsilon_http_server::Shutdown;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use reports::Reports;
use std::sync::Arc;
use upload::upload;
use versions::Versions;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The state that all requests share.
#[derive(Debug)]
pub(crate) struct Server {
    vm: Arc<LocalVm>,
    service: Arc<VmService>,
    versions: Versions,
    reports: Reports,
    shutdown: Shutdown,
}

impl Server {
    pub(crate) fn new(service: &Arc<VmService>, shutdown: Shutdown) -> Arc<Self> {
        Arc::new(Self {
            vm: Arc::clone(&service.0),
            service: Arc::clone(service),
            versions: Versions::default(),
            reports: Reports::default(),
            shutdown,
        })
    }

    /// Answers one request of a gateway. Dropped when it hangs up.
    pub(crate) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        interim: Arc<dyn InterimSink>,
    ) -> Response<CallBody> {
        let mut request = request.map(|body| upload(body, &self.vm));
        match request.headers_mut().remove(headers::VERSION) {
            Some(version) => self.call(version, request, interim).await,
            None => self.order(request).await,
        }
    }

    /// Writes reports until the listener closes.
    pub(crate) async fn report(self: Arc<Self>) {
        self.reports.run(&self.service, &self.shutdown.close).await;
    }

    /// Number of gateways that read reports now.
    pub(crate) fn readers(&self) -> usize {
        self.reports.readers()
    }
}

/// A refusal, in a form that cannot be taken for a function's answer.
fn refused(refusal: &Refusal) -> Response<CallBody> {
    // Our own types always serialize; a gateway takes an empty body for an error of ours.
    let text = serde_json::to_vec(refusal).unwrap_or_default();
    let mut response = Response::new(body::full(text));
    *response.status_mut() = refusal.status();
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response.headers_mut().insert(headers::REFUSAL, HeaderValue::from_static("1"));
    response
}

fn status(status: StatusCode) -> Response<CallBody> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = status;
    response
}
