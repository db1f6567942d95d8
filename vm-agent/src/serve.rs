//! The agent's own listener: what gateways of its fleet say to this VM (`epsilon_api::fleet` lists it). Who may come
//! in is the door's business ([`epsilon_wire::door`]); what a call is, that of `call.rs`, which does not know
//! whether its gateway sits in this process.
//!
//! ```text
//! door: pass? ─▶ x-epsilon-version? ─ yes ─▶ serve/calls.rs ═▶ call.rs
//!                        │ no                    │ serve/versions.rs: what gateways told of versions
//!                        └─▶ serve/orders.rs     └ serve/upload.rs, serve/tunnel.rs: bytes in, bytes both ways
//!                              └─▶ serve/reports.rs: the VM's state, each second
//! ```

mod calls;
mod orders;
mod reports;
mod tunnel;
mod upload;
mod versions;

use crate::vm::{Front, LocalVm};
use epsilon_api::{
    body::{self, CallBody},
    fleet::Refusal,
    headers,
    vm::InterimSink,
};
use epsilon_wire::door::Ending;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use reports::Reports;
use std::sync::Arc;
use upload::Upload;
use versions::Versions;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Site {
    vm: Arc<LocalVm>,
    front: Arc<Front>,
    versions: Versions,
    reports: Reports,
    ending: Ending,
}

impl Site {
    pub(crate) fn new(front: &Arc<Front>, ending: Ending) -> Arc<Self> {
        Arc::new(Self {
            vm: Arc::clone(&front.0),
            front: Arc::clone(front),
            versions: Versions::default(),
            reports: Reports::default(),
            ending,
        })
    }

    /// Answers a gateway. Dropped when it hangs up.
    pub(crate) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        interim: Arc<dyn InterimSink>,
    ) -> Response<CallBody> {
        let mut request = request.map(|body| Upload::new(body, &self.vm));
        match request.headers_mut().remove(headers::VERSION) {
            Some(version) => self.call(version, request, interim).await,
            None => self.order(request).await,
        }
    }

    /// Writes reports until the listener closes.
    pub(crate) async fn report(self: Arc<Self>) {
        self.reports.run(&self.front, &self.ending.close).await;
    }

    /// Gateways that read reports now.
    pub(crate) fn readers(&self) -> usize {
        self.reports.readers()
    }
}

/// "No", in a form that cannot be taken for a function's answer.
fn refused(refusal: &Refusal) -> Response<CallBody> {
    // Our own types always have a text; a gateway takes an empty one for an error of ours.
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
