//! The thread that owns the log files: for each function a directory of numbered NDJSON segments,
//! the oldest of which is removed when the function's limit is reached. Inputs: its queue of
//! [`Command`]s; it ends on `Close` or when the queue has no senders. Because it alone writes,
//! reads and forwards, a follower misses no line between the stored and the new ones.

use epsilon_api::{
    chain::Chain,
    ids::FunctionName,
    log::{LogPosition, LogRecord},
    units::Bytes,
};
use jiff::Timestamp;
use prometheus::IntCounterVec;
use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};
use tokio::sync::{broadcast, mpsc, oneshot};

/// Lines that are buffered for a slow follower.
const FOLLOW_DEPTH: usize = 1024;
/// A function's limit is split into this many files, so that a quarter of it is removed at once.
const SEGMENTS: u64 = 4;
/// Limit of text written at once (plus one line): a function's limit is not exceeded by more.
const BATCH_BYTES: usize = 64 << 10;
/// Limit of open files; beyond it all are closed and opened again as needed.
const OPEN_FILES: usize = 128;

#[derive(Debug)]
pub(super) enum Command {
    Write(LogRecord),
    Read {
        function: FunctionName,
        follow: bool,
        to: oneshot::Sender<Snapshot>,
    },
    /// The function was deleted: removes its log.
    Forget(FunctionName),
    Close,
}

/// The stored files of a function, oldest first, and the channel of later lines.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// With the number and the size of each: bytes beyond the size are newer.
    pub(super) files: Vec<(LogPosition, File)>,
    pub(super) live: Option<broadcast::Receiver<LogRecord>>,
}

pub(super) struct LogStore {
    folder: PathBuf,
    limit: u64,
    rings: HashMap<FunctionName, Ring>,
    followers: HashMap<FunctionName, broadcast::Sender<LogRecord>>,
    dropped: IntCounterVec,
}

/// The segment files of one function.
#[derive(Default)]
struct Ring {
    /// Number and size, oldest first. The first number is the current millisecond: a function that
    /// is deleted and created again never repeats a position.
    segments: VecDeque<(u64, u64)>,
    open: Option<File>,
}

/// The lines of one function in a batch.
#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    /// Each line with the offset of its end.
    lines: Vec<(LogRecord, usize)>,
}

impl Text {
    fn add(&mut self, record: LogRecord) {
        if serde_json::to_writer(&mut self.bytes, &record).is_ok() {
            self.bytes.push(b'\n');
            self.lines.push((record, self.bytes.len()));
        }
    }
}

impl LogStore {
    pub(super) fn new(folder: PathBuf, limit: Bytes, dropped: IntCounterVec) -> Self {
        Self {
            folder,
            limit: limit.get(),
            rings: HashMap::new(),
            followers: HashMap::new(),
            dropped,
        }
    }

    pub(super) fn serve(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut batch = Vec::new();
        while let Some(command) = inbox.blocking_recv() {
            let mut next = Some(command);
            let mut bytes = 0;
            while let Some(command) = next {
                match command {
                    Command::Write(record) => {
                        bytes += record.message.len();
                        batch.push(record);
                    }
                    Command::Read { function, follow, to } => {
                        self.write(&mut batch);
                        drop(to.send(self.snapshot(&function, follow)));
                    }
                    Command::Forget(function) => {
                        self.write(&mut batch);
                        self.forget(&function);
                    }
                    Command::Close => {
                        self.write(&mut batch);
                        return;
                    }
                }
                next = if bytes < BATCH_BYTES { inbox.try_recv().ok() } else { None };
            }
            self.write(&mut batch);
        }
    }

    fn write(&mut self, batch: &mut Vec<LogRecord>) {
        let mut texts: HashMap<FunctionName, Text> = HashMap::new();
        for record in batch.drain(..) {
            texts.entry(record.function.clone()).or_default().add(record);
        }
        if self.rings.values().filter(|ring| ring.open.is_some()).count() > OPEN_FILES {
            self.rings.values_mut().for_each(|ring| ring.open = None);
        }
        for (function, text) in texts {
            let folder = self.folder.join(function.as_str());
            let ring = self.rings.entry(function.clone()).or_insert_with(|| Ring::find(&folder));
            let start = match ring.append(&folder, &text.bytes, self.limit) {
                Ok(start) => Some(start),
                Err(err) => {
                    ring.open = None;
                    let lines = text.lines.len();
                    self.dropped.with_label_values(&[function.as_str()]).inc_by(lines as u64);
                    tracing::warn!(error = %Chain(&err), folder = %folder.display(), lines, "Log lines could not be written; they are dropped.");
                    None
                }
            };
            self.forward(&function, text, start);
        }
    }

    /// Forwards lines to followers; also lines that could not be stored.
    fn forward(&mut self, function: &FunctionName, text: Text, start: Option<LogPosition>) {
        let Some(followers) = self.followers.get(function) else { return };
        for (mut record, end) in text.lines {
            record.position =
                start.map(|start| LogPosition { offset: start.offset + end as u64, ..start });
            if followers.send(record).is_err() {
                self.followers.remove(function); // the last follower is gone
                return;
            }
        }
    }

    fn forget(&mut self, function: &FunctionName) {
        self.rings.remove(function);
        let folder = self.folder.join(function.as_str());
        match fs::remove_dir_all(&folder) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(error = %Chain(&err), folder = %folder.display(), "Log of a deleted function could not be removed; it stays on disk.");
            }
            _ => {}
        }
    }

    fn snapshot(&mut self, function: &FunctionName, follow: bool) -> Snapshot {
        let folder = self.folder.join(function.as_str());
        // Only what exists: reading the log of an unknown function creates nothing.
        let found = Ring::find(&folder);
        let files = found
            .segments
            .iter()
            .filter_map(|&(segment, offset)| {
                let file = File::open(path(&folder, segment)).ok()?;
                Some((LogPosition { segment, offset }, file))
            })
            .collect();
        self.followers.retain(|_, to| to.receiver_count() > 0); // of followers that disconnected
        let live = follow.then(|| {
            let channel = || broadcast::Sender::new(FOLLOW_DEPTH);
            self.followers.entry(function.clone()).or_insert_with(channel).subscribe()
        });
        Snapshot { files, live }
    }
}

impl Ring {
    fn find(folder: &Path) -> Self {
        let mut segments: Vec<(u64, u64)> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let number = name.to_str()?.strip_suffix(".ndjson")?.parse().ok()?;
                Some((number, entry.metadata().ok()?.len()))
            })
            .collect();
        segments.sort_unstable();
        Self { segments: segments.into(), open: None }
    }

    /// Appends the text; returns the position of its begin.
    fn append(&mut self, folder: &Path, text: &[u8], limit: u64) -> io::Result<LogPosition> {
        let is_full = self.segments.back().is_none_or(|(_, size)| *size >= limit / SEGMENTS);
        if is_full {
            self.open = None;
        } else if self.open.is_none()
            && let Some((number, size)) = self.segments.back_mut()
        {
            // Opening a new file for each run would not limit the number of files.
            self.open = reopen(&path(folder, *number), size);
        }
        if self.open.is_none() {
            let number = self.segments.back().map_or_else(first_number, |(number, _)| number + 1);
            fs::create_dir_all(folder)?;
            self.open = Some(File::create_new(path(folder, number))?);
            self.segments.push_back((number, 0));
        }
        let mut start = LogPosition { segment: 0, offset: 0 };
        if let (Some(file), Some((number, size))) = (&mut self.open, self.segments.back_mut()) {
            start = LogPosition { segment: *number, offset: *size };
            if let Err(err) = file.write_all(text) {
                drop(file.set_len(*size)); // or its last line would be torn
                return Err(err);
            }
            *size += text.len() as u64;
        }
        while self.segments.len() > 1
            && self.segments.iter().map(|(_, size)| size).sum::<u64>() > limit
        {
            if let Some((number, _)) = self.segments.pop_front()
                && let Err(err) = fs::remove_file(path(folder, number))
                && err.kind() != io::ErrorKind::NotFound
            {
                return Err(err);
            }
        }
        Ok(start)
    }
}

/// Opens a file to append to; `None` when a crash tore its last line, or it was removed.
fn reopen(path: &Path, size: &mut u64) -> Option<File> {
    let mut file = File::options().read(true).append(true).open(path).ok()?;
    *size = file.metadata().ok()?.len();
    if *size > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1)).ok()?;
        file.read_exact(&mut last).ok()?;
        (last == *b"\n").then_some(())?;
    }
    Some(file)
}

/// The first segment number of a function without files.
fn first_number() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(1)
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:010}.ndjson"))
}
