//! Detects saved files of the project. The system only reports *that* something happened; *what*
//! changed is found by comparing the project's files, so that ignored files, `node_modules`, reads
//! and editors' temporary files are no changes.
//!
//! Where the system cannot watch (too many folders, some network disks), files are compared
//! periodically.

use crate::{commands::deploy, failure::Failure};
use epsilon_api::chain::Chain;
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    sync::{Notify, mpsc},
    time::sleep,
};

/// Silence after which a save counts as complete: an editor writes in several steps, some within a
/// few milliseconds.
const SETTLE_TIME: Duration = Duration::from_millis(15);
/// Longest wait for that silence, such as during a checkout of another branch.
const MAX_SETTLE: Duration = Duration::from_millis(120);
/// Interval of comparing where the system cannot watch.
const POLL: Duration = Duration::from_millis(300);
/// Changes queued during a reload; they are taken together.
const WAITING: usize = 16;

/// Saved files.
#[derive(Debug)]
pub(super) struct Change {
    /// Time of the first save.
    pub(super) since: Instant,
    /// Relative to the project's folder.
    pub(super) files: BTreeSet<PathBuf>,
}

/// Watches a project until the receiver is dropped.
pub(super) fn start(root: PathBuf) -> Result<mpsc::Receiver<Change>, Failure> {
    let events = Arc::new(Events::default());
    let recorder = Arc::clone(&events);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| is_a_write(event.kind)) {
            recorder.record();
        }
    });
    let watcher = watcher.inspect_err(cannot_watch).ok();
    let mut watch = Watch { root, watcher, watched: BTreeSet::new(), files: Files::new(), events };
    watch.compare()?;
    let (changes, receiver) = mpsc::channel(WAITING);
    tokio::spawn(watch.run(changes));
    Ok(receiver)
}

fn is_a_write(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

fn cannot_watch(error: &notify::Error) {
    tracing::warn!(error = %Chain(error), "Project files cannot be watched; comparing them every 300 ms instead.");
}

/// Size and time of each file.
type Files = BTreeMap<PathBuf, (u64, Option<SystemTime>)>;

/// Events of the system.
#[derive(Debug, Default)]
struct Events {
    /// Times of the first and the last event since they were taken.
    seen: Mutex<Option<(Instant, Instant)>>,
    any: Notify,
}

impl Events {
    fn record(&self) {
        let now = Instant::now();
        let mut seen = self.seen.lock();
        *seen = Some((seen.map_or(now, |(first, _)| first), now));
        self.any.notify_one();
    }

    /// Waits until something was saved and the save is complete. Returns when it began.
    async fn next(&self) -> Instant {
        loop {
            let seen = *self.seen.lock();
            match seen {
                Some((first, last))
                    if last.elapsed() >= SETTLE_TIME || first.elapsed() >= MAX_SETTLE =>
                {
                    *self.seen.lock() = None;
                    return first;
                }
                Some((_, last)) => sleep(SETTLE_TIME.saturating_sub(last.elapsed())).await,
                None => self.any.notified().await,
            }
        }
    }
}

struct Watch {
    root: PathBuf,
    /// `None`: files are compared on a timer.
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    files: Files,
    events: Arc<Events>,
}

impl Watch {
    async fn run(mut self, changes: mpsc::Sender<Change>) {
        while !changes.is_closed() {
            let since = match self.watcher {
                Some(_) => tokio::select! {
                    since = self.events.next() => since,
                    () = changes.closed() => return,
                },
                None => {
                    sleep(POLL).await;
                    Instant::now()
                }
            };
            match self.compare() {
                Ok(files) if files.is_empty() => {}
                Ok(files) => drop(changes.send(Change { since, files }).await),
                Err(failure) => tracing::warn!(
                    ?failure,
                    "Project folder cannot be read; trying again at the next change."
                ),
            }
        }
    }

    /// The files that differ from the last comparison. New folders are watched before they are
    /// read.
    fn compare(&mut self) -> Result<BTreeSet<PathBuf>, Failure> {
        let files = loop {
            let (files, folders) = read(&self.root)?;
            if self.watch(folders) == 0 {
                break files;
            }
        };
        let differs = |path: &&PathBuf| files.get(*path) != self.files.get(*path);
        let changed = files.keys().chain(self.files.keys()).filter(differs).cloned().collect();
        self.files = files;
        Ok(changed)
    }

    /// Watches these folders. Returns how many are new.
    fn watch(&mut self, folders: BTreeSet<PathBuf>) -> usize {
        let Some(watcher) = &mut self.watcher else { return 0 };
        for gone in self.watched.difference(&folders) {
            drop(watcher.unwatch(gone)); // a removed folder is no longer watched anyway
        }
        let new: Vec<_> = folders.difference(&self.watched).cloned().collect();
        for folder in &new {
            if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive)
                && folder.exists()
            {
                cannot_watch(&error);
                self.watcher = None;
                return 0;
            }
        }
        self.watched = folders;
        new.len()
    }
}

/// Files and folders of the project; entries that vanish meanwhile are left out.
fn read(root: &Path) -> Result<(Files, BTreeSet<PathBuf>), Failure> {
    let mut files = Files::new();
    let mut folders = BTreeSet::new();
    for found in deploy::walk(root)?.build().flatten() {
        let Ok(meta) = fs::symlink_metadata(found.path()) else { continue };
        if meta.is_dir() {
            folders.insert(found.into_path());
        } else {
            let path = found.path().strip_prefix(root).unwrap_or(found.path()).to_owned();
            files.insert(path, (meta.len(), meta.modified().ok()));
        }
    }
    Ok((files, folders))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    /// Generous, for a busy machine.
    const SOON: Duration = Duration::from_secs(20);

    async fn next(changes: &mut mpsc::Receiver<Change>) -> Vec<String> {
        let change = timeout(SOON, changes.recv()).await.unwrap().unwrap();
        change.files.iter().map(|path| path.display().to_string()).collect()
    }

    #[tokio::test]
    async fn only_project_files_count_as_changes() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("node_modules/a")).unwrap();
        fs::write(root.join(".gitignore"), "*.tmp\nlogs/\n").unwrap();
        fs::write(root.join("index.js"), "1").unwrap();
        let mut changes = start(root.clone()).unwrap();

        for ignored in ["node_modules/a/index.js", "x.tmp"] {
            fs::write(root.join(ignored), "ignored").unwrap();
        }
        fs::write(root.join("index.js"), "22").unwrap();
        assert_eq!(next(&mut changes).await, ["index.js"]);
        // As editors save: a new file replaces the old one.
        fs::write(root.join("index.js.tmp"), "333").unwrap();
        fs::rename(root.join("index.js.tmp"), root.join("index.js")).unwrap();
        assert_eq!(next(&mut changes).await, ["index.js"]);
        fs::create_dir_all(root.join("lib/deep")).unwrap();
        fs::write(root.join("lib/deep/a.js"), "1").unwrap();
        assert_eq!(next(&mut changes).await, ["lib/deep/a.js"]);
        fs::write(root.join("lib/deep/a.js"), "22").unwrap();
        assert_eq!(next(&mut changes).await, ["lib/deep/a.js"], "a new folder is watched");
        fs::remove_file(root.join("index.js")).unwrap();
        assert_eq!(next(&mut changes).await, ["index.js"]);
    }
}
