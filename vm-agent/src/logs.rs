//! Logs of functions: what their containers write (`container/output.rs`, `parse.rs`) and what the
//! agent reports to their authors. All lines go through one bounded queue to one thread
//! (`store.rs`), which stores them on disk within a limit and forwards them to followers.
//!
//! The path of a call never waits for a log: a full queue drops lines, and counts them. Each
//! function has a quota of it (`rate.rs`), so that a function that floods its log only drops its
//! own lines.

pub(crate) mod parse;
pub(crate) mod rate;
mod store;

use epsilon_api::{
    function::Version,
    ids::{FunctionName, InstanceId, RequestId},
    log::{Level, LogPosition, LogQuery, LogRecord},
    units::Bytes,
};
use futures_util::{StreamExt as _, stream, stream::BoxStream};
use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus::IntCounterVec;
use rate::Quota;
use std::{
    collections::{HashMap, VecDeque},
    fs,
    io::{self, BufRead as _, Read as _, Seek as _, SeekFrom},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Weak},
    thread,
    time::Duration,
};
use store::{Command, LogStore, Snapshot};
use tokio::sync::{
    broadcast,
    mpsc::{self, error::TrySendError},
    oneshot,
};

/// Length of the queue in lines: a second of a function that logs without restraint.
const QUEUE: usize = 8192;
/// Longest wait of a reader for the thread that owns the files.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Mode of the logs' directory.
const OWNER_ONLY: u32 = 0o700;

/// Handle to the logs; cheap to clone. The thread ends when the last one is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Logs {
    commands: mpsc::Sender<Command>,
    /// Dropped lines, by function.
    dropped: IntCounterVec,
    /// The rate limits of functions with an instance here.
    quotas: Arc<Mutex<HashMap<FunctionName, Weak<Quota>>>>,
    thread: Arc<Mutex<Option<thread::JoinHandle<()>>>>,
}

impl Logs {
    /// Opens the directory `logs/`, which only this user may enter (functions log what concerns
    /// their callers), and starts the thread that owns it.
    pub(crate) fn open(folder: &Path, limit: Bytes, dropped: IntCounterVec) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(OWNER_ONLY))?;
        let (commands, inbox) = mpsc::channel(QUEUE);
        let store = LogStore::new(folder.to_owned(), limit, dropped.clone());
        let thread =
            thread::Builder::new().name("epsilon-logs".into()).spawn(move || store.serve(inbox))?;
        let thread = Arc::new(Mutex::new(Some(thread)));
        Ok(Self { commands, dropped, quotas: Arc::default(), thread })
    }

    /// The rate limit that all instances of a function quota.
    pub(crate) fn quota(&self, function: &FunctionName) -> Arc<Quota> {
        let mut quotas = self.quotas.lock();
        if let Some(quota) = quotas.get(function).and_then(Weak::upgrade) {
            return quota;
        }
        quotas.retain(|_, quota| quota.strong_count() > 0);
        let quota = Arc::new(Quota::default());
        quotas.insert(function.clone(), Arc::downgrade(&quota));
        quota
    }

    /// Stores one line, unless the queue is full.
    pub(crate) fn record(&self, record: LogRecord) {
        if let Err(
            TrySendError::Full(Command::Write(record))
            | TrySendError::Closed(Command::Write(record)),
        ) = self.commands.try_send(Command::Write(record))
        {
            self.count_dropped(&record.function);
            if let Some(quota) = self.quotas.lock().get(&record.function).and_then(Weak::upgrade) {
                quota.queue_was_full();
            }
        }
    }

    pub(crate) fn count_dropped(&self, function: &FunctionName) {
        self.dropped.with_label_values(&[function.as_str()]).inc();
    }

    /// Logs an event of the agent for the function's author.
    pub(crate) fn event(
        &self,
        version: &Version,
        instance: &InstanceId,
        level: Level,
        request_id: Option<RequestId>,
        message: String,
    ) {
        self.record(LogRecord {
            time: Timestamp::now(),
            level,
            function: version.function.clone(),
            version: version.number,
            instance: instance.clone(),
            request_id,
            message,
            vm: None,
            position: None,
        });
    }

    /// Removes the log of a deleted function. Returns at once.
    pub(crate) fn forget(&self, function: FunctionName) {
        if self.commands.try_send(Command::Forget(function.clone())).is_err() {
            tracing::warn!(%function, "Log queue is full; the log of a deleted function stays on disk.");
        }
    }

    /// Stored lines, oldest first, then new ones if requested: each once, and none of the stored
    /// ones is left out.
    pub(crate) fn read(
        &self,
        function: FunctionName,
        query: LogQuery,
    ) -> BoxStream<'static, LogRecord> {
        let reader = Reader {
            logs: self.clone(),
            function,
            query,
            stored: VecDeque::new(),
            next: Next::Files,
        };
        stream::unfold(reader, |mut reader| async move {
            reader.next().await.map(|record| (record, reader))
        })
        .boxed()
    }

    async fn snapshot(&self, function: FunctionName, follow: bool) -> Option<Snapshot> {
        let (to, answer) = oneshot::channel();
        let command = Command::Read { function, follow, to };
        let snapshot = async {
            self.commands.send(command).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(READ_TIMEOUT, snapshot).await.ok().flatten()
    }

    /// Writes what is queued and ends the thread, also while other handles exist.
    pub(crate) async fn close(&self) {
        drop(tokio::time::timeout(READ_TIMEOUT, self.commands.send(Command::Close)).await);
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            let join = tokio::task::spawn_blocking(move || thread.join());
            drop(tokio::time::timeout(READ_TIMEOUT, join).await);
        }
    }
}

/// Position and state of one reader.
struct Reader {
    logs: Logs,
    function: FunctionName,
    /// Its `after` moves with what was read.
    query: LogQuery,
    stored: VecDeque<LogRecord>,
    next: Next,
}

/// Where the lines after those in `stored` come from.
enum Next {
    Files,
    Live(broadcast::Receiver<LogRecord>),
    Nothing,
}

impl Reader {
    async fn next(&mut self) -> Option<LogRecord> {
        loop {
            if let Some(record) = self.stored.pop_front() {
                return Some(self.advance(record));
            }
            match &mut self.next {
                Next::Nothing => return None,
                Next::Files => self.read_files().await?,
                Next::Live(live) => match live.recv().await {
                    Ok(record) if matches(&record, &self.query) => {
                        return Some(self.advance(record));
                    }
                    Ok(record) => drop(self.advance(record)),
                    // The follower fell behind the channel; the files have the lines.
                    Err(broadcast::error::RecvError::Lagged(_)) => self.next = Next::Files,
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
            }
        }
    }

    async fn read_files(&mut self) -> Option<()> {
        let snapshot = self.logs.snapshot(self.function.clone(), self.query.follow).await?;
        let end = snapshot.files.last().map(|(end, _)| *end);
        let files = snapshot.files;
        let query = self.query.clone();
        let stored = tokio::task::spawn_blocking(move || read_stored(files, &query)).await;
        self.stored = stored.unwrap_or_default();
        if self.stored.is_empty() {
            self.query.after = self.query.after.max(end); // or the next read would begin with `tail` again
        }
        self.next = snapshot.live.map_or(Next::Nothing, Next::Live);
        Some(())
    }

    fn advance(&mut self, record: LogRecord) -> LogRecord {
        self.query.after = record.position.or(self.query.after);
        record
    }
}

fn matches(record: &LogRecord, query: &LogQuery) -> bool {
    query.request_id.is_none() || record.request_id == query.request_id
}

fn read_stored(files: Vec<(LogPosition, fs::File)>, query: &LogQuery) -> VecDeque<LogRecord> {
    // A reader with a position wants all lines since.
    let tail = query.tail.filter(|_| query.after.is_none()).unwrap_or(usize::MAX);
    let after = query.after.unwrap_or(LogPosition { segment: 0, offset: 0 });
    let mut stored = VecDeque::new();
    for (end, mut file) in files.into_iter().filter(|(end, _)| end.segment >= after.segment) {
        let segment = end.segment;
        let mut offset = if segment == after.segment { after.offset } else { 0 };
        if file.seek(SeekFrom::Start(offset)).is_err() {
            continue;
        }
        // Lines written since the snapshot are forwarded to followers.
        let file = file.take(end.offset.saturating_sub(offset));
        for line in io::BufReader::new(file).split(b'\n').map_while(Result::ok) {
            offset += line.len() as u64 + 1;
            // A line that was torn by a crash is skipped.
            let Ok(mut record) = serde_json::from_slice::<LogRecord>(&line) else { continue };
            record.position = Some(LogPosition { segment, offset });
            if matches(&record, query) {
                if stored.len() >= tail {
                    stored.pop_front();
                }
                if tail > 0 {
                    stored.push_back(record);
                }
            }
        }
    }
    stored
}

#[cfg(test)]
mod tests;
