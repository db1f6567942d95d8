//! A call over the network: removes the platform's headers from the request and adds one to the
//! answer. Bodies are not read.

use super::{Server, refused, tunnel::Tunnel, upload::Upload};
use crate::call;
use epsilon_api::{
    body::{self, CallBody},
    chain::Chain,
    error::VmError,
    fleet::{Refusal, write_spent},
    function::Version,
    headers::{GATEWAY_TOKEN, MAY_WAIT, REFUSAL, REQUEST_ID, RawTarget, SPENT, TARGET},
    ids::RequestId,
    vm::{Answer, Call, Held, InterimSink, Spent},
};
use epsilon_fleet_link::authenticated_listener::AnswerWithin;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use std::{sync::Arc, time::Duration};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// Time for an answer to be read beyond the function's `timeout`, at which the VM has ended it.
const READ_SLACK: Duration = Duration::from_secs(10);

impl Server {
    pub(super) async fn call(
        &self,
        version: HeaderValue,
        mut request: Request<Upload>,
        interim: Arc<dyn InterimSink>,
    ) -> Response<CallBody> {
        let version = version.to_str().ok().and_then(|id| self.versions.get(id));
        let Some(version) = version else { return refused(&Refusal::UnknownVersion) };
        let gateway = request.extensions_mut().remove::<OnUpgrade>();
        let (request_id, may_wait) = take_ours(request.headers_mut(), gateway.is_some());
        if let Some(raw) = request.headers_mut().remove(TARGET) {
            request.extensions_mut().insert(RawTarget(raw));
        }
        let call = Call {
            version: Arc::clone(&version),
            request_id,
            may_wait,
            upload: request.body().observer().progress(),
            request: request.map(body::boxed),
            interim: Some(interim),
        };
        match call::handle(&self.vm, call).await {
            Ok(answer) => self.answered(answer, gateway, &version),
            Err(err) => {
                tracing::debug!(function = %version.function, error = %Chain(&err), "Call refused or failed.");
                refused(&Refusal::of(&err))
            }
        }
    }

    fn answered(
        &self,
        answer: Answer,
        gateway: Option<OnUpgrade>,
        version: &Version,
    ) -> Response<CallBody> {
        let Answer { mut response, spent } = answer;
        let left = version.spec.timeout.saturating_sub(spent.exec) + READ_SLACK;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let extensions = response.extensions_mut();
            let function = extensions.remove::<OnUpgrade>();
            let held = extensions.remove::<Held>();
            let (Some(gateway), Some(function)) = (gateway, function) else {
                return refused(&Refusal::of(&VmError::FunctionCrashed {
                    function: version.function.clone(),
                    cause: "the function answered 101 to a request without an upgrade".into(),
                }));
            };
            Tunnel { gateway, function, held, left, vm: Arc::clone(&self.vm) }.open();
        }
        let headers = response.headers_mut();
        // A function cannot answer in the name of the agent.
        headers.remove(REFUSAL);
        headers.insert(SPENT, spent_header(&spent));
        response.extensions_mut().insert(AnswerWithin(left));
        response
    }
}

/// Removes headers between gateway and agent, and those of this connection only.
fn take_ours(headers: &mut HeaderMap, upgrades: bool) -> (RequestId, bool) {
    headers.remove(GATEWAY_TOKEN);
    headers.remove(header::TRANSFER_ENCODING);
    if !upgrades {
        headers.remove(header::CONNECTION);
    }
    headers.remove(KEEP_ALIVE);
    let request_id = headers
        .remove(REQUEST_ID)
        .and_then(|id| RequestId::parse(id.to_str().ok()?).ok())
        .unwrap_or_else(RequestId::random);
    let may_wait = headers.remove(MAY_WAIT).is_none_or(|value| value != "0");
    (request_id, may_wait)
}

fn spent_header(spent: &Spent) -> HeaderValue {
    // Digits and semicolons are always a valid header value.
    HeaderValue::from_maybe_shared(bytes::Bytes::from(write_spent(spent)))
        .unwrap_or(HeaderValue::from_static("0;0"))
}
