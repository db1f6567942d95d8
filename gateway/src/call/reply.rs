//! Last phase: the answer to the caller. Every answer gets its request id and the platform's
//! timings here. A call ends, and is counted, when the last byte of its answer is sent.

use super::{caller_address::CallerAddress, lookup::Addressed, relay::headers};
use crate::{
    fleet::load::InFlightGuard,
    health::Report,
    observe::{
        events::{CallEnded, CallFailed, RequestLine},
        metrics::Metrics,
    },
    routes::Route,
};
use bytes::Bytes;
use epsilon_api::{
    body::{self, BodyError, CallBody},
    chain::Chain,
    error::{CALLER_GONE, CallError},
    headers::{REQUEST_ID, SERVER_TIMING},
    ids::RequestId,
    vm::{Answer, Spent},
};
use epsilon_http_server::observed::{Observed, Observer};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER},
};
use http_body::{Body, Frame};
use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// One call from its head to its last byte. Dropping the record ends the call and logs it.
#[derive(Debug)]
pub(crate) struct CallRecord {
    metrics: Arc<Metrics>,
    began: Instant,
    request_id: RequestId,
    /// The request line, if calls are logged.
    request_line: Option<RequestLine>,
    caller: IpAddr,
    /// Set after lookup.
    pub(crate) route: Option<Arc<Route>>,
    /// Set when a VM has answered.
    pub(crate) in_flight: Option<InFlightGuard>,
    status: u16,
    bytes_out: u64,
    complete: bool,
    /// The request is a HEAD: its answer is complete without a body.
    head_only: bool,
    /// Makes a drain wait for the call.
    _running: TaskTrackerToken,
}

impl CallRecord {
    pub(crate) fn begin<B>(
        metrics: Arc<Metrics>,
        request_id: RequestId,
        request: &Request<B>,
        caller: &CallerAddress,
        running: TaskTrackerToken,
    ) -> Self {
        metrics.in_flight.inc();
        Self {
            metrics,
            began: Instant::now(),
            request_id,
            request_line: RequestLine::of(request),
            caller: caller.ip,
            route: None,
            in_flight: None,
            status: CALLER_GONE,
            bytes_out: 0,
            complete: false,
            head_only: *request.method() == Method::HEAD,
            _running: running,
        }
    }

    /// The last byte was sent. `more`: bytes that the body did not count itself.
    pub(crate) fn complete(&mut self, more: u64) {
        self.bytes_out += more;
        self.complete = true;
    }

    pub(crate) fn request_id(&self) -> &RequestId {
        &self.request_id
    }

    /// The head of this answer is about to be sent.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = status.as_u16();
        self.complete = self.head_only;
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        let ended = CallEnded {
            request_id: Some(&self.request_id),
            request_line: self.request_line.as_ref(),
            caller: self.caller,
            route: self.route.as_deref(),
            status: self.status,
            took: self.began.elapsed(),
            bytes_out: self.bytes_out,
            complete: self.complete,
        };
        ended.emit(&self.metrics);
    }
}

/// The body of an answer; holds the call's record until the last byte.
pub(crate) type ReplyBody = Observed<CallBody, Receipt>;

/// Notes in the call's record what was sent. `None` if the call ends elsewhere: with an upgrade's
/// tunnel.
#[derive(Debug)]
pub(crate) struct Receipt(Option<CallRecord>);

impl Observer<CallBody> for Receipt {
    fn frame(&mut self, frame: &mut Frame<Bytes>, _is_last: bool) -> Result<(), BodyError> {
        if let Some(trailers) = frame.trailers_mut() {
            headers::clean_trailers(trailers);
        }
        if let Some(record) = &mut self.0 {
            record.bytes_out += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        Ok(())
    }

    fn end(&mut self) {
        if let Some(record) = &mut self.0 {
            record.complete = true;
        }
    }

    fn failed(&mut self, error: BodyError) -> BodyError {
        if let Some(record) = &self.0 {
            tracing::debug!(request_id = %record.request_id, error = %Chain(&*error), "Answer broke off; the caller gets an incomplete body.");
        }
        error
    }

    /// hyper does not read a body that is said to have no bytes.
    fn unread(&mut self, rest: CallBody) {
        if rest.size_hint().exact() == Some(0) {
            Observer::<CallBody>::end(self);
        }
    }
}

/// The function's own answer. `record` is `None` if a tunnel ends the call.
pub(crate) fn answer(
    answer: Answer,
    addressed: Addressed,
    request_id: &RequestId,
    record: Option<CallRecord>,
) -> Response<ReplyBody> {
    let Answer { response, spent } = answer;
    let (mut head, inner) = response.into_parts();
    let upgraded = head.status == StatusCode::SWITCHING_PROTOCOLS;
    headers::clean_answer(&mut head.headers, upgraded, addressed);
    stamp(&mut head.headers, request_id, &timing(&spent));
    let mut record = record;
    if let Some(record) = &mut record {
        record.answered(head.status);
    }
    Response::from_parts(head, ReplyBody::over(inner, Receipt(record)))
}

/// The platform's error instead of an answer of the function.
pub(crate) fn error(err: &CallError, mut record: CallRecord) -> Response<ReplyBody> {
    let request_id = &record.request_id;
    let route = record.route.as_deref();
    CallFailed { error: err, request_id, route }.emit(&record.metrics);
    let verdict = err.verdict();
    let text = err.body(&record.request_id).to_json();
    let mut response = json(verdict.status, text);
    if let Some(after) = verdict.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    if verdict.status == StatusCode::REQUEST_TIMEOUT {
        // The unread rest of the request must not be read as the next one (RFC 9110, 15.5.9).
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let mut timing = String::with_capacity(32);
    put_ms(&mut timing, "total", record.began.elapsed());
    stamp(response.headers_mut(), &record.request_id, &timing);
    record.answered(verdict.status);
    response.map(|inner| ReplyBody::over(inner, Receipt(Some(record))))
}

/// The answer to `GET /`: less than `/healthz` reports, because it is public.
pub(crate) fn health(report: &Report, mut record: CallRecord) -> Response<ReplyBody> {
    let status = report.status.code();
    let data = match report.reason.filter(|_| status != StatusCode::OK) {
        None => serde_json::json!({"status": "ok"}),
        Some(reason) => serde_json::json!({"status": report.status, "reason": reason}),
    };
    let mut response = json(status, serde_json::json!({"data": data}).to_string());
    let mut timing = String::with_capacity(32);
    put_ms(&mut timing, "total", record.began.elapsed());
    stamp(response.headers_mut(), &record.request_id, &timing);
    record.answered(status);
    response.map(|inner| ReplyBody::over(inner, Receipt(Some(record))))
}

fn json(status: StatusCode, text: String) -> Response<CallBody> {
    let mut response = Response::new(body::full(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn stamp(headers: &mut HeaderMap, request_id: &RequestId, timing: &str) {
    // Request ids and numbers are printable ASCII, so neither conversion can fail.
    if let Ok(value) = HeaderValue::from_str(request_id.as_str()) {
        headers.insert(REQUEST_ID, value);
    }
    if let Ok(value) = HeaderValue::from_str(timing) {
        // A function may send timings of its own; the platform's are added to them.
        headers.append(SERVER_TIMING, value);
    }
}

/// `queue;dur=0.012, exec;dur=1.204`, and the phases of a cold start.
fn timing(spent: &Spent) -> String {
    let mut text = String::with_capacity(if spent.start.is_some() { 160 } else { 40 });
    put_ms(&mut text, "queue", spent.queue);
    if let Some(start) = &spent.start {
        put_ms(&mut text, "start", start.total());
        for (name, took) in [
            ("pull", start.pull),
            ("layers", start.layers),
            ("cell", start.cell),
            ("create", start.create),
            ("boot", start.start),
            ("init", start.init),
        ] {
            if !took.is_zero() {
                put_ms(&mut text, name, took);
            }
        }
    }
    put_ms(&mut text, "exec", spent.exec);
    text
}

/// Milliseconds with three decimals. Digit by digit: this runs for every call, and `write!` takes
/// five times as long.
fn put_ms(text: &mut String, name: &str, duration: Duration) {
    if !text.is_empty() {
        text.push_str(", ");
    }
    text.push_str(name);
    text.push_str(";dur=");
    let micros = duration.as_micros();
    let mut digits = [b'0'; 20];
    let (mut rest, mut first) = (u64::try_from(micros).unwrap_or(u64::MAX), digits.len());
    // At least one digit before the point.
    while rest > 0 || first > digits.len() - 4 {
        first -= 1;
        digits[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let (whole, thousandths) = digits[first..].split_at(digits.len() - first - 3);
    for digit in whole.iter().chain(b".").chain(thousandths) {
        text.push(char::from(*digit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use epsilon_api::vm::StartPhases;

    #[test]
    fn a_warm_call_reports_queue_and_exec() {
        let spent = Spent {
            queue: Duration::from_micros(12),
            start: None,
            exec: Duration::from_micros(1204),
        };
        assert_eq!(timing(&spent), "queue;dur=0.012, exec;dur=1.204");
    }

    #[test]
    fn a_cold_call_reports_the_phases_of_its_start() {
        let ms = Duration::from_millis;
        let start =
            StartPhases { create: ms(60), start: ms(90), init: ms(5), ..StartPhases::default() };
        let spent = Spent { queue: ms(1), start: Some(start), exec: ms(2) };
        assert_eq!(
            timing(&spent),
            "queue;dur=1.000, start;dur=155.000, create;dur=60.000, \
             boot;dur=90.000, init;dur=5.000, exec;dur=2.000"
        );
    }
}
