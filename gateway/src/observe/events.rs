//! Events of calls, as structs: emitting one logs it and updates its counters. A call that ended
//! well is logged at debug level; its fields are collected only if that level is enabled.

use super::metrics::Metrics;
use crate::routes::Route;
use epsilon_api::{
    chain::Chain,
    error::{CallError, Fault, VmError},
    ids::{FunctionName, RequestId},
};
use epsilon_bootstrap::log::repeats::Repeats;
use http::{Method, Request, Uri};
use std::{
    error::Error,
    net::IpAddr,
    time::{Duration, Instant},
};

/// The request line of a call. Stored only if calls are logged.
#[derive(Debug)]
pub(crate) struct RequestLine {
    method: Method,
    uri: Uri,
}

impl RequestLine {
    /// The request line, if debug level is enabled.
    pub(crate) fn of<B>(request: &Request<B>) -> Option<Self> {
        tracing::enabled!(tracing::Level::DEBUG)
            .then(|| Self { method: request.method().clone(), uri: request.uri().clone() })
    }
}

/// A call ended: the last byte of its answer was sent, or it was cut.
#[derive(Debug)]
pub(crate) struct CallEnded<'a> {
    pub(crate) request_id: Option<&'a RequestId>,
    pub(crate) request_line: Option<&'a RequestLine>,
    pub(crate) caller: IpAddr,
    pub(crate) route: Option<&'a Route>,
    pub(crate) status: u16,
    pub(crate) took: Duration,
    pub(crate) bytes_out: u64,
    /// Whether the whole answer was sent.
    pub(crate) complete: bool,
}

impl CallEnded<'_> {
    pub(crate) fn emit(&self, metrics: &Metrics) {
        metrics.in_flight.dec();
        metrics.bytes_out.inc_by(self.bytes_out);
        if !self.complete {
            metrics.cut.inc();
        }
        if let Some(route) = self.route {
            route.metrics.ended(self.status, self.took.as_secs_f64());
            if let Some(error_window) = &route.error_window {
                error_window.ended(self.status);
            }
        }
        tracing::debug!(
            request_id = self.request_id.map(tracing::field::display),
            method = self.request_line.map(|line| line.method.as_str()),
            // Without the query, because callers put secrets there.
            path = self.request_line.map(|line| line.uri.path()),
            caller = %self.caller,
            function = self.route.map(|route| tracing::field::display(&route.version.function)),
            version = self.route.map(|route| tracing::field::display(route.version.number)),
            status = self.status,
            took_ms = self.took.as_secs_f64() * 1e3,
            bytes_out = self.bytes_out,
            complete = self.complete,
            "Call ended."
        );
    }
}

/// The platform answers with an error instead of the function. Repeated failures are logged at
/// debug level, except for one line from time to time with their number.
#[derive(Debug)]
pub(crate) struct CallFailed<'a> {
    pub(crate) error: &'a CallError,
    pub(crate) request_id: &'a RequestId,
    /// The called function; calls that reached none share one limit.
    pub(crate) route: Option<&'a Route>,
}

impl CallFailed<'_> {
    pub(crate) fn emit(&self, metrics: &Metrics) {
        let verdict = self.error.verdict();
        metrics.errors.with_label_values(&[verdict.code, verdict.fault.as_str()]).inc();
        let request_id = self.request_id;
        let code = verdict.code;
        let error = Chain(self.error);
        let function = self.route.map(|route| tracing::field::display(&route.version.function));
        let version = self.route.map(|route| tracing::field::display(route.version.number));
        let is_line = match (verdict.fault, self.error) {
            (Fault::Caller, _) => None,
            // Never suppressed: the answer says to quote the request id, so each must be found
            // in the log.
            (Fault::Platform, CallError::Vm(VmError::Internal(_))) => Some(0),
            (Fault::Platform | Fault::Function, _) => {
                self.repeats(metrics).admit(code, Instant::now())
            }
        };
        let Some(repeated) = is_line else {
            tracing::debug!(%request_id, function, version, code, %error, "Call failed.");
            return;
        };
        let repeated = (repeated > 0).then_some(repeated);
        match (verdict.fault, self.error) {
            (_, CallError::Vm(VmError::Internal(_))) => {
                tracing::error!(%request_id, function, version, code, %error, repeated, "Call failed.");
            }
            (_, CallError::Vm(VmError::InitFailed { detail, .. })) => {
                tracing::info!(%request_id, function, version, code, %error, detail, repeated, "Call failed.");
            }
            (Fault::Platform, _) => {
                tracing::warn!(%request_id, function, version, code, %error, repeated, "Call failed.");
            }
            (Fault::Function | Fault::Caller, _) => {
                tracing::info!(%request_id, function, version, code, %error, repeated, "Call failed.");
            }
        }
    }

    fn repeats<'m>(&'m self, metrics: &'m Metrics) -> &'m Repeats {
        self.route.map_or(&metrics.repeats, |route| &route.metrics.repeats)
    }
}

/// An instance of a function with `minInstances` could not be started in advance.
#[derive(Debug)]
pub(crate) struct WarmUpFailed<'a> {
    pub(crate) function: &'a FunctionName,
    pub(crate) error: &'a VmError,
}

impl WarmUpFailed<'_> {
    pub(crate) fn emit(&self) {
        let function = self.function;
        let error = Chain(self.error);
        tracing::warn!(%function, %error, "Instance could not be started in advance; the next call starts one.");
    }
}

/// A connection could not be accepted.
#[derive(Debug)]
pub(crate) struct AcceptFailed<'a> {
    pub(crate) error: &'a (dyn Error + 'static),
    pub(crate) pause: Duration,
}

impl AcceptFailed<'_> {
    pub(crate) fn emit(&self, metrics: &Metrics) {
        metrics.accept_errors.inc();
        let error = Chain(self.error);
        let pause = self.pause;
        tracing::warn!(%error, ?pause, "Listener cannot accept connections; retrying after a pause.");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use prometheus::Registry;
    use std::{io, sync::Arc};

    /// The log as a reader gets it at the default level.
    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(fail: impl Fn(&Metrics)) -> Vec<String> {
        let written = Output::default();
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let to = written.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || to.clone());
        tracing::subscriber::with_default(log.finish(), || (0..276).for_each(|_| fail(&metrics)));
        String::from_utf8(written.0.lock().clone()).unwrap().lines().map(str::to_owned).collect()
    }

    fn failed(metrics: &Metrics, error: &CallError) {
        let request_id = &RequestId::random();
        let route = None::<&Route>;
        CallFailed { error, request_id, route }.emit(metrics);
    }

    #[test]
    fn failures_that_repeat_are_one_line() {
        let lines = lines(|metrics| {
            failed(metrics, &CallError::GatewayFull);
            let function = FunctionName::parse("pay").unwrap();
            failed(metrics, &VmError::FunctionError { function }.into());
            failed(metrics, &VmError::CallerGone.into());
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains("WARN") && lines[1].contains("INFO"), "{lines:?}");
    }

    #[test]
    fn every_internal_error_is_logged() {
        let lines = lines(|metrics| failed(metrics, &VmError::Internal("broken".into()).into()));
        assert_eq!(lines.len(), 276);
    }
}
