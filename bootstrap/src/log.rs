//! Logging to standard error, one line per event; readable on a terminal, JSON for collectors.
//! `EPSILON_LOG` filters, as in `info,epsilon_gateway=debug`. Called first by programs that serve.
//!
//! ```text
//! any thread ─ an event ─▶ queue (4,096 lines) ─ one thread ─▶ standard error
//!                           └ full: the line is lost and counted; the count is a line itself, later
//! ```
//!
//! The reader of standard error may stall (a collector that hangs, a terminal with Ctrl-S): then
//! the writer thread waits, and no other. Lines are lost rather than calls.

pub mod repeats;

use crate::failure::Failure;
use clap::ValueEnum;
use std::{
    backtrace::{Backtrace, BacktraceStatus},
    env,
    io::IsTerminal as _,
    panic,
    sync::{
        OnceLock,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Lines between the program and its standard error: some megabytes at most.
const QUEUE: usize = 4096;
/// Time between two reports of lost lines.
const REPORT: Duration = Duration::from_secs(1);

/// Of this process; nothing before [`init`].
static LOST: OnceLock<ErrorCounter> = OnceLock::new();

/// Lines of this process that were lost so far.
pub fn lost_lines() -> u64 {
    LOST.get().map_or(0, |lost| lost.dropped_lines() as u64)
}

/// The form of a line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    /// For people
    Compact,
    /// For collectors
    Json,
}

/// The running log. When dropped at the end of a program, it writes what is queued; it waits about
/// a second at most for a reader that stalls.
#[derive(Debug)]
#[must_use = "lines that are queued are lost with the process"]
pub struct Logging {
    losses: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
    /// Flushes when it is dropped: after [`Logging::drop`] has reported the last losses.
    _writer: WorkerGuard,
}

/// The filter in `EPSILON_LOG`; an empty one counts as not set.
pub fn filter() -> Option<String> {
    env::var("EPSILON_LOG").ok().filter(|filter| !filter.is_empty())
}

/// Starts logging for the whole process.
///
/// # Errors
/// When the filter is invalid.
pub fn init(format: Option<Format>, filter: Option<&str>) -> Result<Logging, Failure> {
    let filter = EnvFilter::try_new(filter.unwrap_or("info")).map_err(|err| {
        Failure::usage("EPSILON_LOG is not a filter")
            .with_cause(&err)
            .hint("write it like `info` or `info,epsilon_gateway=debug`")
    })?;
    // bollard logs whole requests at debug: environments of functions and registry credentials with
    // them.
    let quiet = "bollard=info".parse().map_err(|err: tracing_subscriber::filter::ParseError| {
        Failure::new("LOGGING", "a filter is wrong").with_cause(&err)
    })?;
    let filter = filter.add_directive(quiet);
    let terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { Format::Compact } else { Format::Json });
    let (queue, writer) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUE)
        .thread_name("epsilon-stderr")
        .finish(std::io::stderr());
    let lost = queue.error_counter();
    drop(LOST.set(lost.clone()));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(queue);
    match format {
        Format::Compact => builder.compact().with_ansi(terminal).with_target(false).init(),
        Format::Json => builder.json().flatten_event(true).init(),
    }
    panic::set_hook(Box::new(log_panic));

    let (end, ended) = mpsc::channel();
    let reporter = thread::Builder::new()
        .name("epsilon-log-loss".into())
        .spawn(move || report_losses(&lost, &ended))
        .map_err(|err| Failure::new("LOGGING", "the system refused a thread").with_cause(&err))?;
    Ok(Logging { losses: Some((end, reporter)), _writer: writer })
}

impl Drop for Logging {
    fn drop(&mut self) {
        if let Some((end, reporter)) = self.losses.take() {
            drop(end);
            drop(reporter.join());
        }
    }
}

/// Reports lost lines whenever there are more. Such a report may be lost itself; then the next one
/// includes it.
fn report_losses(lost: &ErrorCounter, ended: &mpsc::Receiver<()>) {
    let mut reported = 0;
    loop {
        let is_last = ended.recv_timeout(REPORT) != Err(RecvTimeoutError::Timeout);
        let lost_total = lost.dropped_lines();
        if lost_total > reported {
            tracing::warn!(
                lost_total,
                "Log lines were lost: standard error is not read fast enough."
            );
            reported = lost_total;
        }
        if is_last {
            return;
        }
    }
}

/// The default hook writes to standard error itself, and would block the thread of a call on its
/// reader.
fn log_panic(panic: &panic::PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture(); // if RUST_BACKTRACE is set
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then_some(backtrace);
    let backtrace = backtrace.as_ref().map(tracing::field::display);
    let thread = thread::current();
    tracing::error!(%panic, thread = thread.name(), backtrace, "A thread panicked.");
}
