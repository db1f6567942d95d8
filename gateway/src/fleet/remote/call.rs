//! A call on the wire: the function's own request with four headers of ours, and the function's own answer with one.
//! Nothing is copied: headers move, bodies stream.

use super::{Remote, Trouble};
use crate::fleet::{
    link::{Kept, Sent},
    view::VersionKey,
};
use epsilon_api::{
    body::{self, CallBody},
    error::CallError,
    fleet::read_spent,
    function::Version,
    headers::{MAY_WAIT, REFUSAL, REQUEST_ID, RawTarget, SPENT, TARGET, VERSION},
    ids::RequestId,
    vm::{Answer, Call, Held},
};
use epsilon_wire::connection::Connection;
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, HOST, InvalidHeaderValue, TRANSFER_ENCODING},
};
use http_body::Body as _;
use hyper::body::Incoming;
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// How often a call that waits for its answer looks whether its VM is still in the world.
const LOOK: Duration = Duration::from_secs(1);

impl Remote {
    pub(super) async fn send(&self, call: Call) -> Result<Answer, CallError> {
        let Call { version, request_id, may_wait, request, interim, .. } = call;
        let key = VersionKey::of_version(&version);
        self.tell(&version, key)
            .await
            .map_err(|trouble| trouble.before(version.function.clone()))?;
        let uploads = !request.body().is_end_stream();
        let request = prepare(request, &version, &request_id, may_wait).map_err(|err| {
            CallError::Internal(Box::new(err)) // a bug of ours; nothing was sent
        })?;
        match self.wait_for(self.link.send(request, interim.as_deref()), &version).await? {
            Sent::Answered(response, connection) => {
                self.answer(response, connection, uploads, &version).await
            }
            Sent::Unsent(trouble) => Err(trouble.before(version.function.clone())),
            Sent::Lost(trouble) => Err(trouble.after(version.function.clone())),
            Sent::BadBody(err) => {
                Err(CallError::of_request_body(&err).unwrap_or(CallError::CallerGone))
            }
        }
    }

    /// Waits for the head of the answer: as long as the function and all that comes before it may take, and no
    /// longer than the VM is there. A cut cable says nothing, so somebody has to look.
    async fn wait_for(
        &self,
        sent: impl Future<Output = Sent>,
        version: &Version,
    ) -> Result<Sent, CallError> {
        let limit = version.spec.timeout + self.patience.start;
        let over = Instant::now() + limit;
        let mut sent = pin!(sent);
        loop {
            let now = Instant::now();
            if let Ok(sent) = timeout_at((now + LOOK).min(over), sent.as_mut()).await {
                return Ok(sent);
            }
            if self.is_lost() || Instant::now() >= over {
                let waited = limit.saturating_sub(over.saturating_duration_since(Instant::now()));
                return Err(Trouble::Silent(waited).after(version.function.clone()));
            }
        }
    }

    async fn answer(
        &self,
        mut response: Response<Incoming>,
        connection: Connection,
        uploads: bool,
        version: &Version,
    ) -> Result<Answer, CallError> {
        if response.headers().contains_key(REFUSAL) {
            // Nobody reads on what a refused call uploads: its connection goes with it.
            let kept = |body| match uploads {
                true => Kept::once(body, connection),
                false => Kept::new(body, connection, Arc::clone(&self.link)),
            };
            return Err(self.refusal(response.map(kept), version).await);
        }
        let spent = response.headers_mut().remove(SPENT);
        let spent = spent.as_ref().and_then(|text| text.to_str().ok()).and_then(read_spent);
        // hyper's own answers (400, 431) do not have it: the agent's HTTP did not take what ours let through.
        let Some(spent) = spent else {
            let odd = Trouble::Odd(format!("{} without what it spent", response.status()));
            return Err(odd.after(version.function.clone()));
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // The connection is the tunnel now.
            response.extensions_mut().insert(Held(Arc::new(connection)));
            return Ok(Answer { response: response.map(|_| body::empty()), spent });
        }
        let kept = |body| body::boxed(Kept::new(body, connection, Arc::clone(&self.link)));
        Ok(Answer { response: response.map(kept), spent })
    }
}

/// Adds what the agent has to know. What it would take for another request is not sent at all: one without its version is no
/// call, and one without its id has another one's in the log.
fn prepare(
    mut request: Request<CallBody>,
    version: &Version,
    request_id: &RequestId,
    may_wait: bool,
) -> Result<Request<CallBody>, InvalidHeaderValue> {
    *request.version_mut() = http::Version::HTTP_11;
    // Said outright: without it hyper takes a GET for one without a body.
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

    /// The agent's HTTP would refuse the target as it was sent; callers cannot send this header, all of ours are dropped.
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
