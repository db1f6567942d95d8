//! Output for the developer: one line for each call, each log line of a function, each reload.
//! Colour on a terminal, plain in a pipe, JSON for programs. Everything goes to standard output, in
//! order.

use crate::output;
use console::Style;
use epsilon_api::{
    admin::{DeployedFunction, Step},
    error::ErrorBody,
    log::{Level, LogRecord},
};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Files named in the line of a reload.
const FILES_NAMED: usize = 3;
/// Column width of functions' names.
const NAME: usize = 12;

/// The developer's terminal. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Terminal {
    json: bool,
    zone: Arc<TimeZone>,
    /// The reader of standard output is gone.
    gone: CancellationToken,
}

/// An ended call.
#[derive(Debug, Default)]
pub(super) struct CallLine {
    pub(super) function: Option<String>,
    pub(super) version: Option<u64>,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) status: u64,
    pub(super) took_ms: f64,
    pub(super) complete: bool,
    pub(super) request_id: String,
}

impl Terminal {
    pub(super) fn new(json: bool) -> Self {
        Self { json, zone: Arc::new(TimeZone::system()), gone: CancellationToken::new() }
    }

    /// Resolves when the reader of standard output is gone.
    pub(super) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// The listeners are ready.
    pub(super) fn ready(&self, calls: SocketAddr, control: SocketAddr) {
        let (calls, control) = (format!("http://{calls}"), format!("http://{control}"));
        if self.json {
            self.value(json!({ "event": "ready", "calls": calls, "control": control }));
        } else {
            self.line(&format!("ready  calls {calls}  control {control}"));
        }
    }

    /// A note.
    pub(super) fn note(&self, text: &str) {
        if self.json {
            self.value(json!({ "event": "note", "message": text }));
        } else {
            self.line(&self.entry("", &dim(text)));
        }
    }

    /// New code serves, `took` after it was saved.
    pub(super) fn serves(
        &self,
        functions: &[DeployedFunction],
        files: &BTreeSet<PathBuf>,
        took: Duration,
        steps: &[(Step, u64)],
    ) {
        if self.json {
            let names = |changed: bool| functions.iter().filter(move |one| one.changed || !changed);
            let changed: Vec<_> = names(true).map(|one| &one.name).collect();
            return self.value(json!({
                "event": "serves", "changed": changed, "files": files, "took_ms": took.as_secs_f64() * 1e3,
                "steps_ms": steps.iter().map(|(step, ms)| (step.to_string(), *ms)).collect::<BTreeMap<_, _>>(),
                "functions": names(false).map(|one| json!({ "name": one.name, "url": one.url })).collect::<Vec<_>>(),
            }));
        }
        if files.is_empty() {
            for one in functions {
                let name = one.name.as_str();
                self.line(&format!("  {}{} {}", colour(name).apply_to(name), pad(name), one.url));
            }
            return;
        }
        let changed: Vec<_> = functions.iter().filter(|one| one.changed).collect();
        let what = match changed.len() {
            0 => "unchanged since before the error".to_owned(),
            n if n == functions.len() && n > FILES_NAMED => format!("all {n} functions"),
            _ => changed.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", "),
        };
        let done = green(&format!("reloaded in {}", output::took(took)));
        self.line(&self.entry("", &format!("{done}  {what} {}", dim(&named(files)))));
    }

    /// The saved code cannot serve. `output` is what it printed.
    pub(super) fn broken(&self, error: &ErrorBody, output: &[String], serves: bool) {
        let consequence = if serves {
            "the previous version still serves; save again to retry"
        } else {
            "nothing serves yet; save again to retry"
        };
        if self.json {
            return self.value(json!({
                "event": "broken", "error": error, "output": output, "serves": serves,
            }));
        }
        let mut text = String::new();
        for line in output {
            let _ = writeln!(text, "  {}", dim(line)); // writing to a String cannot fail
        }
        let _ = write!(text, "{} {}", red("error:"), error.message.trim_end());
        if let Some(hint) = &error.hint {
            let _ = write!(text, "\n{} {hint}", Style::new().cyan().apply_to("hint:"));
        }
        let _ = write!(text, "\n{}", dim(consequence));
        self.line(&self.entry("", &text));
    }

    /// A call ended. `stale`: its code is older than the last save.
    pub(super) fn call(&self, call: &CallLine, stale: bool) {
        if self.json {
            return self.value(json!({
                "event": "call", "function": call.function, "version": call.version, "method": call.method,
                "path": call.path, "status": call.status, "took_ms": call.took_ms,
                "complete": call.complete, "request_id": call.request_id, "stale": stale,
            }));
        }
        let status = match call.status {
            0..=399 => Style::new().green(),
            400..=499 => Style::new().yellow(),
            _ => Style::new().red(),
        };
        let took = Duration::from_secs_f64(call.took_ms.max(0.0) / 1e3);
        let mut text = format!(
            "{} {} {} {}",
            call.method,
            call.path,
            status.apply_to(call.status),
            output::took(took)
        );
        if !call.complete {
            text += " (cut)";
        }
        if stale {
            let _ = write!(text, " {}", red("old code: the last save does not load"));
        }
        let _ = write!(text, "  {}", dim(&call.request_id));
        self.line(&self.entry(call.function.as_deref().unwrap_or("-"), &text));
    }

    /// The platform answered a call instead of the function; the call's own line follows.
    pub(super) fn refused(&self, code: &str, error: &str, request_id: &str) {
        if self.json {
            return self.value(json!({
                "event": "refused", "code": code, "error": error, "request_id": request_id,
            }));
        }
        self.line(&self.entry("", &format!("{} {error}  {}", red(code), dim(request_id))));
    }

    /// A function's log line.
    pub(super) fn log(&self, record: &LogRecord) {
        if self.json {
            let mut value = serde_json::to_value(record).unwrap_or_default();
            if let Some(fields) = value.as_object_mut() {
                fields.insert("event".into(), "log".into());
            }
            return self.value(value);
        }
        let level = match record.level {
            Level::Debug => dim("debug "),
            Level::Info => String::new(),
            Level::Warn => Style::new().yellow().apply_to("warn ").to_string(),
            Level::Error => red("error "),
        };
        let mut text = format!("| {level}{}", output::visible(record.message.trim_end()));
        if let Some(id) = &record.request_id {
            let _ = write!(text, "  {}", dim(id.as_str()));
        }
        self.line(&self.entry(record.function.as_str(), &text));
    }

    /// A warning of the platform.
    pub(super) fn warning(&self, text: &str) {
        if self.json {
            self.value(json!({ "event": "warning", "message": text }));
        } else {
            let word = Style::new().yellow().apply_to("warning:");
            self.line(&self.entry("", &format!("{word} {text}")));
        }
    }

    /// Time, name, text; further lines of the text are indented.
    fn entry(&self, name: &str, text: &str) -> String {
        let time = Timestamp::now().to_zoned((*self.zone).clone()).strftime("%H:%M:%S").to_string();
        let name = format!("{}{}", colour(name).apply_to(name), pad(name));
        format!("{} {name} {}", dim(&time), text.replace('\n', "\n    "))
    }

    fn value(&self, value: Value) {
        self.line(&value.to_string());
    }

    fn line(&self, text: &str) {
        if output::line(text).is_err() {
            self.gone.cancel();
        }
    }
}

/// A colour for each function, always the same one.
fn colour(name: &str) -> Style {
    let style = Style::new().bold();
    match name.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % 5 {
        0 => style.cyan(),
        1 => style.magenta(),
        2 => style.blue(),
        3 => style.green(),
        _ => style.yellow(),
    }
}

fn pad(name: &str) -> String {
    " ".repeat(NAME.saturating_sub(name.chars().count()))
}

fn dim(text: &str) -> String {
    Style::new().dim().apply_to(text).to_string()
}

fn red(text: &str) -> String {
    Style::new().red().bold().apply_to(text).to_string()
}

fn green(text: &str) -> String {
    Style::new().green().apply_to(text).to_string()
}

fn named(files: &BTreeSet<PathBuf>) -> String {
    let first: Vec<_> =
        files.iter().take(FILES_NAMED).map(|path| path.display().to_string()).collect();
    match files.len().saturating_sub(FILES_NAMED) {
        0 => format!("({})", first.join(", ")),
        more => format!("({} and {more} more)", first.join(", ")),
    }
}
