//! Tells that files of the project were saved. The system only says *that* something happened; *what* did is seen
//! by comparing the project's files before and after, so that what `.gitignore` leaves out, `node_modules`, reads
//! and editors' temporary files are no changes.
//!
//! Where the system cannot watch (too many folders, some network disks), the files are compared again and again.

use crate::{commands::deploy, failure::Failure};
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

/// So long nothing more may happen until it counts as done: an editor writes in several steps, some in a few
/// milliseconds.
const QUIET: Duration = Duration::from_millis(15);
/// A checkout of another branch is looked at after so long, whether it is done or not.
const PATIENCE: Duration = Duration::from_millis(120);
/// How often files are compared where the system cannot watch.
const POLL: Duration = Duration::from_millis(300);
/// Changes that may wait for the reload before them; they are taken together.
const WAITING: usize = 16;

/// Files that were saved.
#[derive(Debug)]
pub(super) struct Change {
    /// When the first one was.
    pub(super) since: Instant,
    /// Relative to the project's folder.
    pub(super) files: BTreeSet<PathBuf>,
}

/// Watches a project until the receiver is dropped.
pub(super) fn start(root: PathBuf) -> Result<mpsc::Receiver<Change>, Failure> {
    let news = Arc::new(News::default());
    let heard = Arc::clone(&news);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| is_a_write(event.kind)) {
            heard.tell();
        }
    });
    let watcher = watcher.inspect_err(cannot_watch).ok();
    let mut watch = Watch { root, watcher, watched: BTreeSet::new(), files: Files::new(), news };
    watch.look()?;
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
    tracing::warn!(%error, "Files cannot be watched; they are compared every 300 ms instead.");
}

/// Size and time of each file.
type Files = BTreeMap<PathBuf, (u64, Option<SystemTime>)>;

/// What the system said.
#[derive(Debug, Default)]
struct News {
    /// First and last since it was asked.
    told: Mutex<Option<(Instant, Instant)>>,
    any: Notify,
}

impl News {
    fn tell(&self) {
        let now = Instant::now();
        let mut told = self.told.lock();
        *told = Some((told.map_or(now, |(first, _)| first), now));
        self.any.notify_one();
    }

    /// Waits until something was saved and that is done. Says when it began.
    async fn next(&self) -> Instant {
        loop {
            let told = *self.told.lock();
            match told {
                Some((first, last)) if last.elapsed() >= QUIET || first.elapsed() >= PATIENCE => {
                    *self.told.lock() = None;
                    return first;
                }
                Some((_, last)) => sleep(QUIET.saturating_sub(last.elapsed())).await,
                None => self.any.notified().await,
            }
        }
    }
}

struct Watch {
    root: PathBuf,
    /// None: files are compared on a timer.
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    files: Files,
    news: Arc<News>,
}

impl Watch {
    async fn run(mut self, changes: mpsc::Sender<Change>) {
        while !changes.is_closed() {
            let since = match self.watcher {
                Some(_) => tokio::select! {
                    since = self.news.next() => since,
                    () = changes.closed() => return,
                },
                None => {
                    sleep(POLL).await;
                    Instant::now()
                }
            };
            match self.look() {
                Ok(files) if files.is_empty() => {}
                Ok(files) => drop(changes.send(Change { since, files }).await),
                Err(failure) => tracing::warn!(?failure, "The project cannot be read."),
            }
        }
    }

    /// The files that differ from what they were at the last look. New folders are watched before they are read.
    fn look(&mut self) -> Result<BTreeSet<PathBuf>, Failure> {
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

    /// Watches these folders. Says how many are new.
    fn watch(&mut self, folders: BTreeSet<PathBuf>) -> usize {
        let Some(watcher) = &mut self.watcher else { return 0 };
        for gone in self.watched.difference(&folders) {
            drop(watcher.unwatch(gone)); // with the folder, it is gone already
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

/// Files and folders of the project; what vanishes meanwhile is left out.
fn read(root: &Path) -> Result<(Files, BTreeSet<PathBuf>), Failure> {
    let (mut files, mut folders) = (Files::new(), BTreeSet::new());
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

    /// Generous: a busy machine.
    const SOON: Duration = Duration::from_secs(20);

    async fn next(changes: &mut mpsc::Receiver<Change>) -> Vec<String> {
        let change = timeout(SOON, changes.recv()).await.unwrap().unwrap();
        change.files.iter().map(|path| path.display().to_string()).collect()
    }

    #[tokio::test]
    async fn what_belongs_to_the_project_is_a_change_and_nothing_else_is() {
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
        // As editors save: a new file in the place of the old one.
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
