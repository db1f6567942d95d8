//! The builder's data folder: temporary work, and caches that can be rebuilt.
//!
//! ```text
//! DATA/builder/id              the builder's id, a label of its containers
//!             /lock            locked (shared) while a builder uses the folder
//!             /work/RANDOM/    one per build; removed when the build ends, however it ends
//!             /npm/KEY/        npm's own cache, one per project, and its size
//!             /dependencies/KEY/   node_modules, its layer, their size
//!             /builds/KEY/     results of projects' `build` commands
//!             /layers/         layers exported from the engine, and compressed ones
//!             /shelf/          layers of functions, for an agent on this machine
//!             /inspections/KEY.json, /images/KEY.json, /projects/KEY.json
//! ```
//!
//! Nothing here is precious: removing the folder costs time, no data. Cache entries in use are held
//! by a file lock, which ends with the process; [`upkeep`] removes no held entry.

pub(crate) mod upkeep;
pub(crate) mod walk;

use crate::{error, source::ContentDigest};
use epsilon_api::{build::BuildError, chain::Chain, ids::InstanceId, units::Bytes};
use epsilon_bootstrap::remove_untrusted_dir::clear;
use rustix::fs::{FlockOperation, flock};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;
use upkeep::Bound;

const FOLDERS: [&str; 9] = [
    "work",
    "npm",
    "dependencies",
    "builds",
    "layers",
    "shelf",
    "inspections",
    "images",
    "projects",
];

/// Caches of large entries, bounded together by `cache_size`.
const LARGE_CACHES: [&str; 4] = ["npm", "dependencies", "builds", "layers"];
/// Caches of small results, one file each. They have a bound of their own, so that packages do not
/// evict them.
const SMALL_CACHES: [&str; 3] = ["inspections", "images", "projects"];
/// Divisor: the share of `cache_size` for small results.
const SMALL_SHARE: u64 = 16;
/// Entries of one group of caches at most.
const COUNT: usize = 20_000;
/// Time between two runs of upkeep, if no build asks for one.
const UPKEEP_EVERY: Duration = Duration::from_secs(300);
/// The part of a cached folder that containers may write to.
const CONTENT: &str = "cache";
/// How often a lookup is repeated when upkeep removes the entry at the same time.
const HOLD_TRIES: u32 = 100;

/// The data folder.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    root: PathBuf,
    size: u64,
    tasks: TaskTracker,
    /// Notified when a build has ended.
    upkeep: Arc<Notify>,
    _in_use: Arc<File>,
}

/// Keeps a cache entry from being removed as long as this exists. Compares equal to any other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held(#[expect(dead_code, reason = "its lock is what counts")] Option<Arc<File>>);

impl PartialEq for Held {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Held {}

/// An npm cache that is held.
#[derive(Debug)]
pub(crate) struct NpmCache {
    home: PathBuf,
    _held: Held,
}

impl NpmCache {
    /// The folder that npm reads and writes.
    pub(crate) fn folder(&self) -> PathBuf {
        self.home.join(CONTENT)
    }

    /// Records the size of the cache for upkeep. Blocking. A cache larger than `limit`, or one that
    /// cannot be measured, is removed first.
    pub(crate) fn measure(&self, limit: Bytes) {
        let bytes = upkeep::measure(&self.folder()).ok().filter(|bytes| *bytes <= limit.get());
        if let Err(err) = upkeep::write_size(&self.home, bytes.unwrap_or(u64::MAX)) {
            tracing::warn!(path = %self.home.display(), error = %Chain(&err), "Size of an npm cache could not be recorded; upkeep removes it first.");
        }
    }
}

/// Result of opening the folder.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) cache: Cache,
    /// Random builder id, generated once; survives restarts.
    pub(crate) id: String,
    /// No other process uses the folder: leftovers may be removed.
    pub(crate) alone: bool,
}

impl Cache {
    /// Opens the folder, creating it if missing. Removes the temporary work of a killed builder.
    pub(crate) fn open(root: &Path, size: u64, tasks: TaskTracker) -> io::Result<Opened> {
        for name in FOLDERS {
            fs::create_dir_all(root.join(name))?;
        }
        let lock = File::create(root.join("lock"))?;
        let alone = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if alone {
            empty(&root.join("work"), |_| true);
            // An earlier release had one npm cache for all projects; any of them may have written
            // to it.
            empty(&root.join("npm"), |left| !left.join(CONTENT).is_dir());
        }
        flock(&lock, FlockOperation::LockShared)?;
        let id = own_id(&root.join("id"))?;
        let upkeep = Arc::default();
        let cache = Self { root: root.to_owned(), size, tasks, upkeep, _in_use: Arc::new(lock) };
        cache.tidy();
        Ok(Opened { cache, id, alone })
    }

    /// A new temporary folder.
    pub(crate) fn work(&self) -> Result<Arc<WorkDir>, BuildError> {
        let path = self.root.join("work").join(InstanceId::random().as_str());
        fs::create_dir(&path).map_err(|err| error::file("making a folder to work in", &err))?;
        Ok(Arc::new(WorkDir { path, tasks: self.tasks.clone() }))
    }

    /// Removes the least recently used entries beyond the bounds. Blocking. Never fails: what
    /// cannot be removed is logged.
    pub(crate) fn tidy(&self) {
        let folders =
            |kinds: &[&str]| kinds.iter().map(|kind| self.root.join(kind)).collect::<Vec<_>>();
        let trash = self.root.join("work");
        let bound = |bytes| Bound { bytes, count: COUNT };
        upkeep::keep_within(bound(self.size), &folders(&LARGE_CACHES), &trash);
        upkeep::keep_within(bound(self.size / SMALL_SHARE), &folders(&SMALL_CACHES), &trash);
    }

    /// Requests a run of upkeep soon.
    pub(crate) fn request_upkeep(&self) {
        self.upkeep.notify_one();
    }

    /// Runs upkeep as long as it is polled. Cancel-safe.
    pub(crate) async fn run_upkeep(self) {
        loop {
            let _asked_or_time = tokio::time::timeout(UPKEEP_EVERY, self.upkeep.notified()).await;
            let cache = self.clone();
            if let Err(err) = tokio::task::spawn_blocking(move || cache.tidy()).await {
                tracing::error!(error = %Chain(&err), "Upkeep of the builder's caches panicked; trying again with the next run.");
            }
        }
    }

    /// npm's own cache for this key. Its contents decide what is installed, and npm stores answers
    /// of registries there: other keys never see it. Blocking, but short.
    pub(crate) fn npm(&self, key: ContentDigest) -> Result<NpmCache, BuildError> {
        let doing = "making a cache for npm";
        for _ in 0..HOLD_TRIES {
            let home = self.root.join("npm").join(key.to_string());
            let content = home.join(CONTENT);
            fs::create_dir_all(&content)
                .and_then(|()| set_owner(&content, container_user()))
                .map_err(|err| error::file(doing, &err))?;
            if let Some((home, held)) = self.hold("npm", &key.to_string())
                && content.is_dir()
            {
                return Ok(NpmCache { home, _held: held });
            }
        }
        Err(error::broken(doing, &io::Error::from(io::ErrorKind::NotFound)))
    }

    /// The path of a cache entry, if it exists, and the guard that holds it. A lookup counts as
    /// use.
    pub(crate) fn hold(&self, kind: &'static str, name: &str) -> Option<(PathBuf, Held)> {
        let path = self.entry_path(kind, name);
        let file = File::open(&path).ok()?;
        flock(&file, FlockOperation::NonBlockingLockShared).ok()?;
        // Upkeep may have removed it between the two calls.
        let held = file.metadata().ok()?;
        let there = fs::metadata(&path).ok()?;
        ((held.dev(), held.ino()) == (there.dev(), there.ino()))
            .then(|| (path, Held(Some(Arc::new(file)))))
    }

    /// The path where an entry is or would be stored. A lookup counts as use.
    pub(crate) fn entry_path(&self, kind: &'static str, name: &str) -> PathBuf {
        let path = self.root.join(kind).join(name);
        if let Ok(file) = File::open(&path) {
            let _ignored_on_read_only_disks = file.set_modified(SystemTime::now());
        }
        path
    }

    /// Reads a cached value. Anything unreadable counts as missing.
    pub(crate) fn load<T: DeserializeOwned>(&self, kind: &'static str, key: &str) -> Option<T> {
        let text = fs::read(self.entry_path(kind, &format!("{key}.json"))).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Stores a value atomically, also when the machine stops meanwhile.
    pub(crate) fn store<T: Serialize>(
        &self,
        kind: &'static str,
        key: &str,
        value: &T,
    ) -> Result<(), BuildError> {
        let doing = "storing a result";
        let text = serde_json::to_vec(value).map_err(|err| error::broken(doing, &err))?;
        let target = self.root.join(kind).join(format!("{key}.json"));
        let draft = self.root.join(kind).join(format!("{key}.{}", InstanceId::random()));
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, target))
            .map_err(|err| error::file(doing, &err))
    }
}

/// A temporary folder. Dropping the last handle removes it in the background.
#[derive(Debug)]
pub(crate) struct WorkDir {
    path: PathBuf,
    tasks: TaskTracker,
}

impl WorkDir {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A new folder in it that `owner` may write to.
    pub(crate) fn folder(&self, name: &str, owner: (u32, u32)) -> Result<PathBuf, BuildError> {
        let path = self.path.join(name);
        fs::create_dir(&path)
            .and_then(|()| set_owner(&path, owner))
            .map_err(|err| error::file("making a folder to work in", &err))?;
        Ok(path)
    }

    /// A new, empty file in it that `owner` may write to.
    pub(crate) fn file(&self, name: &str, owner: (u32, u32)) -> Result<PathBuf, BuildError> {
        let path = self.path.join(name);
        File::create_new(&path)
            .and_then(|_| set_owner(&path, owner))
            .map_err(|err| error::file("making a file to work with", &err))?;
        Ok(path)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        // Removing a `node_modules` takes long: not on the runtime's own threads.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(self.tasks.spawn_blocking_on(move || remove(&path), &runtime)),
            Err(_) => remove(&path),
        }
    }
}

/// The user of temporary containers, and owner of the folders mounted in them. Only root can change
/// owners; another user's builder runs its containers as that user.
pub(crate) fn container_user() -> (u32, u32) {
    if rustix::process::geteuid().is_root() {
        (crate::image::user::USER, crate::image::user::USER)
    } else {
        (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
    }
}

/// Changes the owner of a path, where this process may.
pub(crate) fn set_owner(path: &Path, (uid, gid): (u32, u32)) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
    }
    Ok(())
}

fn own_id(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => match InstanceId::parse(text.trim()) {
            Ok(id) => return Ok(id.to_string()),
            Err(err) => {
                tracing::warn!(path = %path.display(), error = %Chain(&err), "Builder id file is damaged; generating a new id.");
            }
        },
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => return Err(err),
    }
    let id = InstanceId::random().to_string();
    fs::write(path, &id)?;
    Ok(id)
}

fn remove(path: &Path) {
    let is_folder = path.is_dir() && !path.is_symlink();
    let removed = if is_folder { clear(path) } else { fs::remove_file(path) };
    if let Err(err) = removed
        && err.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(error = %Chain(&err), path = %path.display(), "Folder of a build could not be removed; the next start tries again.");
    }
}

/// Removes the entries of a folder for which `goes` is true.
fn empty(folder: &Path, goes: impl Fn(&Path) -> bool) {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.path()).filter(|path| goes(path)).for_each(|path| remove(&path));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn open(root: &Path, size: u64) -> Opened {
        Cache::open(root, size, TaskTracker::new()).unwrap()
    }

    #[test]
    fn the_id_survives_and_leftover_work_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), 0);
        assert!(first.alone);
        let left = dir.path().join("work/left");
        fs::create_dir(&left).unwrap();
        let second = open(dir.path(), 0);
        assert!(!second.alone && left.exists());
        assert_eq!(first.id, second.id);
        drop((first, second));
        assert!(open(dir.path(), 0).alone);
        assert!(!left.exists());
    }

    #[test]
    fn a_work_folder_goes_with_its_last_handle() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path(), 0).cache;
        let work = cache.work().unwrap();
        let folder = work.folder("npm", container_user()).unwrap();
        fs::write(folder.join("x"), "x").unwrap();
        let other = Arc::clone(&work);
        drop(work);
        assert!(folder.exists());
        drop(other);
        assert!(!folder.exists());
    }

    #[test]
    fn what_is_remembered_comes_back_and_damage_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path(), 1000).cache;
        cache.store("images", "k", &vec![1, 2]).unwrap();
        assert_eq!(cache.load::<Vec<u8>>("images", "k"), Some(vec![1, 2]));
        fs::write(dir.path().join("images/k.json"), "[1,").unwrap();
        assert_eq!(cache.load::<Vec<u8>>("images", "k"), None);
        assert_eq!(fs::read_dir(dir.path().join("images")).unwrap().count(), 1);
    }

    #[test]
    fn a_cache_of_npm_is_its_keys_alone() {
        let dir = tempfile::tempdir().unwrap();
        let shared = dir.path().join("npm/_cacache");
        fs::create_dir_all(&shared).unwrap();
        let cache = open(dir.path(), 1000).cache;
        assert!(!shared.exists());
        let [one, two] =
            ["a", "b"].map(|key| cache.npm(ContentDigest::of(key.as_bytes())).unwrap());
        assert!(one.folder().is_dir() && two.folder().is_dir() && one.folder() != two.folder());
        fs::write(one.folder().join("x"), [0; 10]).unwrap();
        fs::write(two.folder().join("x"), [0; 600]).unwrap();
        one.measure(Bytes(500));
        two.measure(Bytes(500));
        cache.tidy();
        assert!(two.folder().exists(), "it is held");
        let folders = [one.folder(), two.folder()];
        drop((one, two));
        cache.tidy();
        assert_eq!(folders.map(|folder| folder.exists()), [true, false]);
    }

    /// What a package's install script left in a cache of an earlier release: 55 bytes further down
    /// than it was made.
    #[test]
    fn leftovers_never_prevent_a_start() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), 100));
        for kind in LARGE_CACHES.into_iter().chain(SMALL_CACHES) {
            let bomb = dir.path().join(kind).join("bomb").join(CONTENT);
            fs::create_dir_all(&bomb).unwrap();
            walk::tests::nest(&bomb, 3000);
        }
        std::os::unix::fs::symlink("/nowhere", dir.path().join("layers/link")).unwrap();
        open(dir.path(), 100);
        for kind in LARGE_CACHES.into_iter().chain(SMALL_CACHES) {
            assert!(!dir.path().join(kind).join("bomb").exists(), "{kind}");
        }
    }

    #[test]
    fn each_kind_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path(), 160).cache;
        for kind in LARGE_CACHES.into_iter().chain(SMALL_CACHES) {
            for age in [3000, 2000, 1000] {
                let path = dir.path().join(kind).join(age.to_string());
                fs::write(&path, [0; 5]).unwrap();
                let file = File::options().write(true).open(&path).unwrap();
                file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
            }
        }
        fs::write(dir.path().join("layers/new"), [0; 150]).unwrap();
        cache.tidy();
        let count = |kinds: &[&str]| {
            let counts = kinds.iter().map(|k| fs::read_dir(dir.path().join(k)).unwrap().count());
            counts.sum::<usize>()
        };
        assert_eq!((count(&LARGE_CACHES), count(&SMALL_CACHES)), (3, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn upkeep_runs_on_a_timer_and_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path(), 0).cache;
        let running = tokio::spawn(cache.clone().run_upkeep());
        for asks in [true, false] {
            let path = dir.path().join("layers/x");
            fs::write(&path, [0; 5]).unwrap();
            if asks {
                cache.request_upkeep();
            }
            while path.exists() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        running.abort();
    }

    #[test]
    fn held_entries_survive_removed_ones_are_not_held() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path(), 0).cache;
        fs::write(dir.path().join("layers/x"), [0; 5]).unwrap();
        let held = cache.hold("layers", "x").unwrap();
        cache.tidy();
        assert!(held.0.exists());
        drop(held);
        cache.tidy();
        assert!(cache.hold("layers", "x").is_none());
    }
}
