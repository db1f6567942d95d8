//! What happens to calls, as structs: emitting one writes its log line and moves its counters.
//! A call that ended well is a debug line; who reads logs at that level pays for it, nobody else does.

use super::metrics::Metrics;
use crate::routes::Route;
use epsilon_api::{
    chain::Chain,
    error::{CallError, Fault},
    ids::{FunctionName, RequestId},
};
use http::{Method, Request, Uri};
use std::{error::Error, net::IpAddr, time::Duration};

/// What a caller asked for. Kept only where calls are logged: nobody else pays for it.
#[derive(Debug)]
pub(crate) struct Asked {
    method: Method,
    uri: Uri,
}

impl Asked {
    /// Of a request, when lines at debug level are read.
    pub(crate) fn of<B>(request: &Request<B>) -> Option<Self> {
        tracing::enabled!(tracing::Level::DEBUG)
            .then(|| Self { method: request.method().clone(), uri: request.uri().clone() })
    }
}

/// A call is over: its answer's last byte went out, or it was cut.
#[derive(Debug)]
pub(crate) struct CallEnded<'a> {
    pub(crate) request_id: Option<&'a RequestId>,
    pub(crate) asked: Option<&'a Asked>,
    pub(crate) caller: IpAddr,
    pub(crate) route: Option<&'a Route>,
    pub(crate) status: u16,
    pub(crate) took: Duration,
    pub(crate) bytes_out: u64,
    /// Whether the whole answer went out.
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
            if let Some(tally) = &route.tally {
                tally.ended(self.status);
            }
        }
        tracing::debug!(
            request_id = self.request_id.map(tracing::field::display),
            method = self.asked.map(|asked| asked.method.as_str()),
            // Without the query: callers put secrets there.
            path = self.asked.map(|asked| asked.uri.path()),
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

/// The platform answers in the function's place.
#[derive(Debug)]
pub(crate) struct CallFailed<'a> {
    pub(crate) error: &'a CallError,
    pub(crate) request_id: &'a RequestId,
}

impl CallFailed<'_> {
    pub(crate) fn emit(&self, metrics: &Metrics) {
        let verdict = self.error.verdict();
        metrics.errors.with_label_values(&[verdict.code, verdict.fault.as_str()]).inc();
        let (request_id, code, error) = (self.request_id, verdict.code, Chain(self.error));
        match (verdict.fault, self.error) {
            (Fault::Platform, CallError::Internal(_)) => {
                tracing::error!(%request_id, code, %error, "Call failed.");
            }
            (Fault::Platform, _) => tracing::warn!(%request_id, code, %error, "Call failed."),
            (Fault::Function, CallError::InitFailed { detail, .. }) => {
                tracing::info!(%request_id, code, %error, detail, "Call failed.");
            }
            (Fault::Function, _) => tracing::info!(%request_id, code, %error, "Call failed."),
            (Fault::Caller, _) => tracing::debug!(%request_id, code, %error, "Call failed."),
        }
    }
}

/// An instance of a function with `minInstances` could not be started ahead of calls.
#[derive(Debug)]
pub(crate) struct WarmUpFailed<'a> {
    pub(crate) function: &'a FunctionName,
    pub(crate) error: &'a CallError,
}

impl WarmUpFailed<'_> {
    pub(crate) fn emit(&self) {
        let (function, error) = (self.function, Chain(self.error));
        tracing::warn!(%function, %error, "No instance could be started ahead of calls.");
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
        let (error, pause) = (Chain(self.error), self.pause);
        tracing::warn!(%error, ?pause, "Could not accept a connection.");
    }
}
