//! Sends a call to its instance and waits for the head of the answer, within the function's
//! `timeout`. Bodies stream both ways; nothing is read here.

use crate::container::sockets;
use crate::instance::lease::{DeadlineFault, Lease};
use crate::instance::pool::Pool;
use epsilon_api::{
    body::CallBody, error::VmError, headers, ids::RequestId, log::Level, vm::InterimSink,
};
use epsilon_fleet_link::connection::{Connection, MAX_HEADERS};
use http::{HeaderValue, Method, Request, Response, Version, header};
use hyper::body::{Body, Incoming};

/// A call that an instance is answering: the lease, and the connection that the answer arrives on.
/// Dropping it closes the connection; the lease handles the rest.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) connection: Connection,
    pub(crate) lease: Lease,
    /// A HEAD request: the answer has no body, whatever its head says.
    pub(crate) is_head: bool,
}

/// Result of sending a call to its instance.
pub(crate) enum Outcome {
    Answered {
        response: Response<Incoming>,
        call: Running,
    },
    /// Nothing of the call left this process.
    Unsent(Request<CallBody>),
    Failed(VmError),
}

/// Adds the platform's headers to a request.
pub(crate) fn prepare(
    mut request: Request<CallBody>,
    request_id: &RequestId,
    pool: &Pool,
) -> Request<CallBody> {
    *request.version_mut() = Version::HTTP_11;
    // Set explicitly: without it hyper takes a GET for one without a body.
    let is_chunked =
        !request.body().is_end_stream() && request.body().size_hint().exact().is_none();
    let headers = request.headers_mut();
    if is_chunked && !headers.contains_key(header::CONTENT_LENGTH) {
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if let Ok(id) = HeaderValue::from_str(request_id.as_str()) {
        headers.insert(headers::REQUEST_ID, id);
    }
    // The whole timeout: the request is sent at the moment of the hand-over, from which it counts.
    headers.insert(headers::DEADLINE_MS, pool.deadline_ms.clone());
    headers.entry(header::HOST).or_insert(HeaderValue::from_static("localhost"));
    request
}

pub(crate) async fn send(
    mut lease: Lease,
    mut request: Request<CallBody>,
    request_id: &RequestId,
    interim: Option<&dyn InterimSink>,
) -> Outcome {
    let is_head = *request.method() == Method::HEAD;
    let mut reused = match lease.instance().connections.reuse() {
        Some(connection) => connection.ready().await,
        None => None,
    };
    loop {
        let is_fresh = reused.is_none();
        let mut connection = match reused.take() {
            Some(connection) => connection,
            None => match lease.instance().connections.open().await {
                Ok(connection) => connection,
                Err(err) if sockets::is_not_listening(&err) => {
                    let (what, cause) = ("Instance does not accept connections.", err.to_string());
                    lease.pool().warn(lease.instance(), what, Some(&cause));
                    lease.instance_unreachable();
                    return Outcome::Unsent(request);
                }
                // No reason to kill the instance and the calls that it runs. The slot is free
                // again.
                Err(err) => {
                    let function = lease.pool().version.function.clone();
                    let cause = Box::new(err);
                    return Outcome::Failed(VmError::NoCapacity { function, cause });
                }
            },
        };
        let deadline = lease.hand_over(request_id);
        let on_interim = |status, headers| {
            if let Some(sink) = interim {
                sink.interim(status, headers);
            }
        };
        match connection.send_with(request, deadline, on_interim).await {
            Some(Ok(response)) => {
                return Outcome::Answered {
                    response,
                    call: Running { connection, lease, is_head },
                };
            }
            Some(Err(mut err)) => match err.take_message() {
                // The connection had been closed before: nothing was executed, so a new one may
                // carry the call.
                Some(unsent) if !is_fresh => {
                    lease.mark_unsent();
                    request = unsent;
                }
                Some(unsent) => {
                    lease.mark_unsent();
                    lease.instance_unreachable();
                    return Outcome::Unsent(unsent);
                }
                None => return Outcome::Failed(failed(err.into_error(), &mut lease, request_id)),
            },
            None => {
                let timeout = lease.pool().version.spec.timeout;
                let function = lease.pool().version.function.clone();
                drop(connection);
                return Outcome::Failed(match lease.expire() {
                    DeadlineFault::Caller => VmError::BodyTooSlow,
                    DeadlineFault::Function => VmError::FunctionTimeout { function, timeout },
                });
            }
        }
    }
}

/// Maps a broken exchange to the side at fault. The lease is left to `abandoned.rs`, as for a
/// caller who disconnected.
fn failed(err: hyper::Error, lease: &mut Lease, request_id: &RequestId) -> VmError {
    if err.is_user() {
        // The request's own body broke off.
        return VmError::from_body_error(&err).unwrap_or(VmError::CallerGone);
    }
    lease.mark_broken();
    let function = lease.pool().version.function.clone();
    let cause = Box::new(err);
    if !cause.is_parse() {
        return VmError::FunctionCrashed { function, cause };
    }
    let text = if cause.is_parse_too_large() {
        format!(
            "its answer's head is too large: at most {MAX_HEADERS} header fields and 400 KiB pass"
        )
    } else {
        format!("its answer's head is not HTTP: {cause}")
    };
    let logs = &lease.pool().context.logs;
    logs.event(
        &lease.instance().version,
        lease.instance().id(),
        Level::Error,
        Some(request_id.clone()),
        text,
    );
    VmError::AnswerUnreadable { function, cause }
}
