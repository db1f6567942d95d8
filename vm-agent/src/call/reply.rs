//! An instance's answer as it leaves the agent: hop-by-hop headers removed, the wrapper's outcome
//! header turned into a [`VmError`], and the lease inside the body until its last byte.

use super::relay::Running;
use bytes::Bytes;
use epsilon_api::{
    body::{self, BodyError, CallBody},
    error::VmError,
    function::{Runtime, Version},
    headers::{self, Outcome},
    vm::Held,
};
use epsilon_http_server::observed::{Observed, Observer};
use http::{HeaderName, Response, StatusCode, header};
use http_body::Frame;
use hyper::body::Incoming;
use parking_lot::Mutex;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};
use tokio::{task::JoinHandle, time::Instant};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

pub(crate) fn to_answer(
    mut response: Response<Incoming>,
    call: Running,
    version: &Version,
) -> Result<Response<CallBody>, VmError> {
    if version.spec.runtime == Runtime::Node
        && let Some(outcome) = response.headers_mut().remove(headers::OUTCOME)
        && let Some(Outcome::Threw) = Outcome::from_header(outcome.as_bytes())
    {
        call.lease.answered(); // the wrapper's error text is not for the caller
        return Err(VmError::FunctionError { function: version.function.clone() });
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (mut parts, _) = response.into_parts();
        parts.extensions.insert(Held(Arc::new(Upgrade::new(call))));
        return Ok(Response::from_parts(parts, body::empty()));
    }
    let may_reuse = may_reuse(response.status(), call.is_head, version.spec.runtime);
    let head = response.headers_mut();
    head.remove(header::CONNECTION);
    head.remove(KEEP_ALIVE);
    if head.remove(header::TRANSFER_ENCODING).is_some() {
        // Chunks were read, so a length beside them is wrong or redundant (RFC 9112, 6.3).
        head.remove(header::CONTENT_LENGTH);
    }
    Ok(response.map(|incoming| {
        let leased = Leased { call: Some(call), may_reuse, watchdog: None };
        body::boxed(Observed::over(incoming, leased))
    }))
}

/// Whether the connection of such an answer may carry another call. An image of any origin may
/// write a body where HTTP has none (HEAD, 204, 304); those bytes, when late, would begin the next
/// caller's answer. Our own wrappers do not.
fn may_reuse(status: StatusCode, is_head: bool, runtime: Runtime) -> bool {
    let is_bodiless =
        is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    !(is_bodiless && runtime == Runtime::Container)
}

/// Holds the call's lease until the last byte of its answer.
struct Leased {
    call: Option<Running>,
    may_reuse: bool,
    /// Runs for every answer that is not complete at once; holds the call from then on.
    watchdog: Option<Watchdog>,
}

/// Cuts a call at its deadline, also while the caller does not read its answer.
struct Watchdog {
    watched: Arc<Watched>,
    task: JoinHandle<()>,
}

struct Watched {
    call: Mutex<Option<Running>>,
    /// Whether the body waits for bytes of the instance; else it waits for the caller to read.
    waits_for_instance: AtomicBool,
}

impl Watchdog {
    fn start(mut call: Running) -> Self {
        // The task that reads the answer may not be there to drive the connection, too.
        call.connection.detach();
        let deadline = call.lease.deadline();
        let call = Mutex::new(Some(call));
        let watched = Arc::new(Watched { call, waits_for_instance: AtomicBool::new(true) });
        let task = tokio::spawn(Arc::clone(&watched).cut_at(deadline));
        Self { watched, task }
    }

    fn waits_for_instance(&self, waits: bool) {
        self.watched.waits_for_instance.store(waits, Relaxed);
    }

    fn take(&self) -> Option<Running> {
        self.watched.call.lock().take()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.task.abort();
        drop(self.take());
    }
}

impl Watched {
    async fn cut_at(self: Arc<Self>, deadline: Instant) {
        tokio::time::sleep_until(deadline).await;
        let call = self.call.lock().take();
        let Some(Running { connection, lease, .. }) = call else { return };
        drop(connection);
        if self.waits_for_instance.load(Relaxed) {
            lease.expire();
        } else {
            lease.expire_unread();
        }
    }
}

/// An answer was cut at the function's timeout.
#[derive(Debug, thiserror::Error)]
#[error("the function's timeout ran out before its answer ended")]
struct Cut;

impl Leased {
    fn watch(&mut self, waits_for_instance: bool) {
        if let Some(call) = self.call.take() {
            self.watchdog = Some(Watchdog::start(call));
        }
        if let Some(watchdog) = &self.watchdog {
            watchdog.waits_for_instance(waits_for_instance);
        }
    }

    /// The answer broke off: the caller gets an error, and the lease finds out what became of the
    /// call.
    fn break_off(&mut self) {
        if let Some(mut call) = self.take_call() {
            call.lease.mark_broken();
        }
    }

    fn take_call(&mut self) -> Option<Running> {
        match self.watchdog.take() {
            Some(watchdog) => watchdog.take(),
            None => self.call.take(),
        }
    }
}

impl Observer<Incoming> for Leased {
    fn frame(&mut self, _: &mut Frame<Bytes>, is_last: bool) -> Result<(), BodyError> {
        if !is_last {
            self.watch(false); // the reader may never come back
        }
        Ok(())
    }

    fn pending(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        self.watch(true);
        if let Some(watchdog) = &mut self.watchdog {
            // Ready only at the deadline: the watchdog took the call out of this body.
            let _ended = ready!(Pin::new(&mut watchdog.task).poll(cx));
            self.break_off();
            return Poll::Ready(Cut.into());
        }
        Poll::Pending
    }

    /// The last byte was read: the connection may carry another call, and the slot is free unless
    /// the handler still runs.
    fn end(&mut self) {
        if let Some(Running { connection, lease, .. }) = self.take_call() {
            // All bytes of an answer may be there before its code ends it; Node would queue the
            // next one after it.
            let connections = Arc::clone(lease.instance());
            if lease.answered() && self.may_reuse {
                connections.connections.keep(connection);
            }
        }
    }

    fn failed(&mut self, err: hyper::Error) -> BodyError {
        self.break_off();
        err.into()
    }
}

/// A call that became a tunnel (WebSocket). The copying task holds it to the end of the copy.
struct Upgrade(#[allow(dead_code, reason = "held for its drop")] Watchdog);

impl Upgrade {
    fn new(call: Running) -> Self {
        Self(Watchdog::start(call))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodiless_answers_of_container_images_end_their_connection() {
        use Runtime::{Container, Node};
        for (status, is_head, runtime, want) in [
            (200, false, Container, true),
            (200, true, Container, false),
            (204, false, Container, false),
            (304, false, Container, false),
            (404, false, Container, true),
            (204, false, Node, true),
            (200, true, Node, true),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(may_reuse(status, is_head, runtime), want, "{status} {is_head} {runtime:?}");
        }
    }
}
