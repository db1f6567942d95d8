//! A call over HTTP: the function's own request with four headers of the platform, and the
//! function's answer with one. Nothing is copied: headers are moved, bodies are streamed.

use super::{LinkError, Remote};
use crate::fleet::{
    link::{self, Sent},
    view::VersionKey,
};
use epsilon_api::{
    body::{self, CallBody},
    error::VmError,
    fleet::read_spent,
    function::Version,
    headers::{MAY_WAIT, REFUSAL, REQUEST_ID, RawTarget, SPENT, TARGET, VERSION},
    ids::RequestId,
    vm::{Answer, Call, Held},
};
use epsilon_fleet_link::connection::Connection;
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, HOST, InvalidHeaderValue, TRANSFER_ENCODING},
};
use http_body::Body as _;
use hyper::body::Incoming;
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// How often a call that waits for its answer checks whether its VM is lost.
const POLL: Duration = Duration::from_secs(1);

impl Remote {
    pub(super) async fn send(&self, call: Call) -> Result<Answer, VmError> {
        let Call { version, request_id, may_wait, request, interim, .. } = call;
        let key = VersionKey::of_version(&version);
        self.announce(&version, key)
            .await
            .map_err(|link_error| link_error.before(version.function.clone()))?;
        let uploads = !request.body().is_end_stream();
        let request = prepare(request, &version, &request_id, may_wait).map_err(|err| {
            VmError::Internal(Box::new(err)) // a bug of the gateway; nothing was sent
        })?;
        match self.wait_for(self.link.send(request, interim.as_deref()), &version).await? {
            Sent::Answered(response, connection) => {
                self.answer(response, connection, uploads, &version).await
            }
            Sent::Unsent(link_error) => Err(link_error.before(version.function.clone())),
            Sent::Lost(link_error) => Err(link_error.after(version.function.clone())),
            Sent::BadBody(err) => {
                Err(VmError::from_body_error(&err).unwrap_or(VmError::CallerGone))
            }
        }
    }

    /// Waits for the head of the answer: at most as long as the function and everything before it
    /// may take, and only while the VM is not lost. A cut cable gives no signal, so this is checked
    /// regularly.
    async fn wait_for(
        &self,
        sent: impl Future<Output = Sent>,
        version: &Version,
    ) -> Result<Sent, VmError> {
        let limit = version.spec.timeout + self.timeouts.start;
        let over = Instant::now() + limit;
        let mut sent = pin!(sent);
        loop {
            let now = Instant::now();
            if let Ok(sent) = timeout_at((now + POLL).min(over), sent.as_mut()).await {
                return Ok(sent);
            }
            if self.is_lost() || Instant::now() >= over {
                let waited = limit.saturating_sub(over.saturating_duration_since(Instant::now()));
                return Err(LinkError::TimedOut(waited).after(version.function.clone()));
            }
        }
    }

    async fn answer(
        &self,
        mut response: Response<Incoming>,
        connection: Connection,
        uploads: bool,
        version: &Version,
    ) -> Result<Answer, VmError> {
        if response.headers().contains_key(REFUSAL) {
            // The upload of a refused call is not read any more, so its connection is closed
            // afterwards.
            let pooled = |body| {
                if uploads {
                    link::once(body, connection)
                } else {
                    link::pooled(body, connection, Arc::clone(&self.link))
                }
            };
            return Err(self.refusal(response.map(pooled), version).await);
        }
        let spent = response.headers_mut().remove(SPENT);
        let spent = spent.as_ref().and_then(|text| text.to_str().ok()).and_then(read_spent);
        // hyper's own answers (400, 431) lack this header: the agent's HTTP server refused what the
        // gateway let through.
        let Some(spent) = spent else {
            let odd = LinkError::Protocol(format!(
                "status {} without the header of its timings",
                response.status()
            ));
            return Err(odd.after(version.function.clone()));
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // The connection is the tunnel now.
            response.extensions_mut().insert(Held(Arc::new(connection)));
            return Ok(Answer { response: response.map(|_| body::empty()), spent });
        }
        let pooled = |body| body::boxed(link::pooled(body, connection, Arc::clone(&self.link)));
        Ok(Answer { response: response.map(pooled), spent })
    }
}

/// Adds the headers for the agent. Fails instead of sending a request that the agent would misread:
/// one without its version is not a call, and one without its id would be logged under another.
fn prepare(
    mut request: Request<CallBody>,
    version: &Version,
    request_id: &RequestId,
    may_wait: bool,
) -> Result<Request<CallBody>, InvalidHeaderValue> {
    *request.version_mut() = http::Version::HTTP_11;
    // Explicit: without it hyper would send a GET without its body.
    let is_chunked =
        !request.body().is_end_stream() && request.body().size_hint().exact().is_none();
    let raw = request.extensions_mut().remove::<RawTarget>();
    let headers = request.headers_mut();
    if is_chunked && !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let id = format!("{}@{}", version.function, version.number);
    if let Some(RawTarget(raw)) = raw {
        headers.insert(TARGET, raw);
    }
    headers.insert(VERSION, HeaderValue::try_from(id)?);
    headers.insert(REQUEST_ID, HeaderValue::from_str(request_id.as_str())?);
    if !may_wait {
        headers.insert(MAY_WAIT, HeaderValue::from_static("0"));
    }
    headers.entry(HOST).or_insert(HeaderValue::from_static("localhost"));
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// The agent's HTTP server would refuse the original target. Callers cannot send this header:
    /// all of the platform's are removed.
    #[test]
    fn an_odd_target_goes_beside_the_call() {
        let version = testing::version("pay", 1);
        for raw in [None, Some(HeaderValue::from_static("/<b>"))] {
            let mut request = Request::get("/%3Cb%3E").body(body::empty()).unwrap();
            if let Some(raw) = raw.clone() {
                request.extensions_mut().insert(RawTarget(raw));
            }
            let sent = prepare(request, &version, &RequestId::random(), true).unwrap();
            assert_eq!(sent.headers().get(TARGET), raw.as_ref());
            assert_eq!(sent.uri(), "/%3Cb%3E");
        }
    }
}
