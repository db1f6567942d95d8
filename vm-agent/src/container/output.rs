//! Reads one container's output and sends it to the log. It reads as fast as output arrives, even
//! if the log is slow: a container whose pipe is full is blocked. Only a container that writes
//! without end is slowed down (`logs/rate.rs`).

use crate::logs::Logs;
use crate::logs::parse::{Line, Lines};
use crate::logs::rate::{Quota, ReadRate};
use crate::{
    context::VmContext,
    engine::{ContainerName, EngineError, Output},
};
use epsilon_api::{
    function::Version,
    ids::InstanceId,
    log::{Level, LogRecord},
};
use futures_util::{StreamExt, stream::BoxStream};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// Number of last lines stored for the report on an instance that died while loading.
const LAST_LINES: usize = 10;
/// How long output is still read after the container is removed.
const LAST_LINES_WAIT: Duration = Duration::from_millis(500);
/// Pause before an output that broke off is attached again: the engine restarted, or the container
/// ended.
const REATTACH_PAUSE: Duration = Duration::from_secs(1);

type LastLines = Arc<Mutex<VecDeque<String>>>;
/// The function that a container's lines belong to: none while it is an unassigned cell.
type Owner = Arc<OnceLock<Author>>;

/// The function that writes.
struct Author {
    /// Time of the previous line.
    newest: Mutex<Timestamp>,
    /// The fields that are the same for all lines.
    record: LogRecord,
    quota: Arc<Quota>,
}

impl Author {
    /// The time of a line. The code supplies it for its own lines, and may supply anything: it is
    /// limited to the time between the previous line and now.
    fn time(&self, reported: Option<Timestamp>) -> Timestamp {
        let mut newest = self.newest.lock();
        let now = Timestamp::now();
        *newest = clamp(reported.unwrap_or(now), *newest, now);
        *newest
    }
}

/// Unlike [`Ord::clamp`], also correct when the clock was set back: then it is `now`.
fn clamp(reported: Timestamp, before: Timestamp, now: Timestamp) -> Timestamp {
    reported.max(before).min(now)
}

/// The attached output of one container.
pub(crate) struct AttachedOutput {
    last: LastLines,
    owner: Owner,
    logs: Logs,
    pump: JoinHandle<()>,
}

impl AttachedOutput {
    /// Attaches to the container and reads until its output ends, at the latest a moment after it
    /// is `gone`.
    pub(crate) async fn open(
        context: &Arc<VmContext>,
        container: &ContainerName,
        gone: &CancellationToken,
    ) -> Result<Self, EngineError> {
        let output = context.engine.attach(container).await?;
        let last = LastLines::default();
        let owner = Owner::default();
        let pump = Pump {
            context: Arc::clone(context),
            owner: Arc::clone(&owner),
            container: container.clone(),
            gone: gone.clone(),
            last: Arc::clone(&last),
        };
        Ok(Self { last, owner, logs: context.logs.clone(), pump: context.spawn(pump.run(output)) })
    }

    /// From now on, output goes to this version's log.
    pub(crate) fn belongs_to(&self, version: &Version, instance: &InstanceId) {
        let record = LogRecord {
            time: Timestamp::UNIX_EPOCH,
            level: Level::Info,
            function: version.function.clone(),
            version: version.number,
            instance: instance.clone(),
            request_id: None,
            message: String::new(),
            vm: None,
            position: None,
        };
        let quota = self.logs.quota(&version.function);
        let newest = Mutex::new(Timestamp::now());
        drop(self.owner.set(Author { newest, record, quota }));
    }

    /// The last lines of the container, each indented on a new line; empty when it wrote nothing.
    pub(crate) fn last_lines(&self) -> String {
        self.last.lock().iter().fold(String::new(), |text, line| text + "\n  " + line)
    }

    /// The same, once all output has arrived, within the limit.
    pub(crate) async fn last_lines_after(mut self, limit: Duration) -> String {
        drop(timeout(limit, &mut self.pump).await);
        self.last_lines()
    }
}

struct Pump {
    context: Arc<VmContext>,
    /// The function; fills in the rest of each line's record.
    owner: Owner,
    container: ContainerName,
    gone: CancellationToken,
    last: LastLines,
}

impl Pump {
    async fn run(self, output: BoxStream<'static, Output>) {
        tokio::select! {
            () = self.pump_on(output) => {}
            // An output can stay open after its container was removed.
            () = async { self.gone.cancelled().await; sleep(LAST_LINES_WAIT).await } => {}
        }
    }

    async fn pump_on(&self, mut output: BoxStream<'static, Output>) {
        loop {
            self.pump(output).await;
            if timeout(REATTACH_PAUSE, self.gone.cancelled()).await.is_ok() {
                return;
            }
            output = loop {
                match self.context.engine.attach(&self.container).await {
                    Ok(output) => break output,
                    Err(EngineError::Down(_)) => sleep(REATTACH_PAUSE).await,
                    Err(
                        EngineError::NotFound(_)
                        | EngineError::Refused(_)
                        | EngineError::Registry(_)
                        | EngineError::NotHere(_)
                        | EngineError::Shared(_),
                    ) => return,
                }
            };
        }
    }

    async fn pump(&self, mut output: BoxStream<'static, Output>) {
        let limit = self.context.config.log_line;
        let mut stdout = Lines::new(Level::Info, limit);
        let mut stderr = Lines::new(Level::Error, limit);
        let mut rate = ReadRate::new();
        while let Some(piece) = self.next(&mut output).await {
            let bytes = match &piece {
                Output::Stdout(bytes) | Output::Stderr(bytes) => bytes.len(),
            };
            match piece {
                Output::Stdout(bytes) => stdout.push(&bytes, |line| self.log(line)),
                Output::Stderr(bytes) => stderr.push(&bytes, |line| self.log(line)),
            }
            if let Some(wait) = rate.read(bytes, Instant::now()) {
                sleep(wait).await;
            }
        }
        stdout.flush(|line| self.log(line));
        stderr.flush(|line| self.log(line));
        self.report();
    }

    /// The next piece of output; meanwhile reports lost lines when a report is due.
    async fn next(&self, output: &mut BoxStream<'static, Output>) -> Option<Output> {
        loop {
            let report = self.owner.get().and_then(|author| author.quota.next_report());
            let Some(report) = report else { return output.next().await };
            match timeout_at(report, output.next()).await {
                Ok(piece) => return piece,
                Err(_) => self.report(),
            }
        }
    }

    fn report(&self) {
        let Some(author) = self.owner.get() else { return };
        if let Some(message) = author.quota.report(Instant::now()) {
            let (time, level) = (author.time(None), Level::Warn);
            self.context.logs.record(LogRecord { time, level, message, ..author.record.clone() });
        }
    }

    fn log(&self, line: Line) {
        let Some(author) = self.owner.get() else {
            tracing::debug!(container = %self.container, message = line.message, "Unassigned cell wrote a log line; it belongs to no function.");
            return;
        };
        {
            let mut last = self.last.lock();
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            last.push_back(line.message.clone());
        }
        if !author.quota.admits(line.message.len(), Instant::now()) {
            self.context.logs.count_dropped(&author.record.function);
            return;
        }
        self.context.logs.record(LogRecord {
            time: author.time(line.time),
            level: line.level,
            request_id: line.request_id,
            message: line.message,
            ..author.record.clone()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forged_times_stay_between_previous_line_and_now() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let (before, now) = (at(100), at(200));
        for (reported, want) in [
            (at(150), 150),
            (at(100), 100),
            (at(200), 200),
            (at(99), 100),
            (at(201), 200),
            (Timestamp::MIN, 100),
            (Timestamp::MAX, 200),
        ] {
            assert_eq!(clamp(reported, before, now), at(want), "{reported}");
        }
        assert_eq!(clamp(at(150), at(300), now), now, "the clock was set back");
    }
}
