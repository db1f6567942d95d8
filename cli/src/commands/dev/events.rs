//! Shows log events of the platform's parts on the developer's terminal: the gateway's line for
//! each ended or failed call, and warnings of any part. Nothing else, unless EPSILON_LOG asks for
//! it.

use super::terminal::{CallLine, Terminal};
use crate::failure::Failure;
use epsilon_bootstrap::log;
use std::{
    fmt::{Debug, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer, filter::Targets, layer::Context, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// Target of the gateway's events of calls.
const CALLS: &str = "epsilon_gateway::observe::events";
/// Prefix of this program's own modules.
const OURS: &str = "epsilon::";
/// Messages of these events.
const ENDED: &str = "Call ended.";
const FAILED: &str = "Call failed.";

/// Installs the listener for the whole process. `stale`: the serving code is older than the last
/// save.
pub(super) fn listen(terminal: Terminal, stale: Arc<AtomicBool>) -> Result<(), Failure> {
    let others = match log::filter() {
        Some(filter) => filter.parse().map_err(|err: tracing_subscriber::filter::ParseError| {
            Failure::usage("EPSILON_LOG is not a filter")
                .with_cause(&err)
                .hint("write it like `info` or `info,epsilon_gateway=debug`")
        })?,
        // Failures of instances, for example, are already in the function's log.
        None => Targets::new().with_default(Level::ERROR).with_target(OURS, Level::WARN),
    };
    let wanted = others.with_target(CALLS, Level::DEBUG);
    tracing_subscriber::registry().with(Listener { terminal, stale }.with_filter(wanted)).init();
    Ok(())
}

struct Listener {
    terminal: Terminal,
    stale: Arc<AtomicBool>,
}

impl<S: Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        match (event.metadata().target(), fields.message.as_str()) {
            (CALLS, ENDED) => {
                let stale = self.stale.load(Ordering::Relaxed);
                self.terminal.call(&fields.call, stale && fields.call.function.is_some());
            }
            (CALLS, FAILED) => {
                let Fields { code, error, call, .. } = &fields;
                self.terminal.refused(code, error, &call.request_id);
            }
            _ => self.terminal.warning(&(fields.message + &fields.others)),
        }
    }
}

/// The fields of an event.
#[derive(Default)]
struct Fields {
    message: String,
    code: String,
    error: String,
    call: CallLine,
    /// All other fields, as text.
    others: String,
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        if field.name() == "took_ms" {
            self.call.took_ms = value;
        }
        self.record_debug(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "status" {
            self.call.status = value;
        }
        self.record_debug(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        if field.name() == "complete" {
            self.call.complete = value;
        }
        self.record_debug(field, &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => {
                self.message = text;
                return;
            }
            "code" => self.code.clone_from(&text),
            "error" => self.error.clone_from(&text),
            "function" => self.call.function = Some(text.clone()),
            "version" => self.call.version = text.parse().ok(),
            "method" => self.call.method.clone_from(&text),
            "path" => self.call.path.clone_from(&text),
            "request_id" => self.call.request_id.clone_from(&text),
            _ => {}
        }
        let _ = write!(self.others, " {}={text}", field.name()); // writing to a String cannot fail
    }
}
