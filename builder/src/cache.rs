//! The builder's folder on disk: work that is thrown away, and what is kept because it can be had again.
//!
//! ```text
//! DATA/builder/id              names the builder's containers
//!             /lock            shared while a builder uses the folder
//!             /work/RANDOM/    one per build; removed when the build ends, however it ends
//!             /npm/KEY/        npm's own cache, one per project
//!             /dependencies/KEY/   node_modules, its layer
//!             /layers/         layers exported from the engine, and compressed ones
//!             /shelf/          layers of functions, for an agent on this machine
//!             /inspections/KEY.json, /images/KEY.json, /projects/KEY.json
//! ```
//!
//! Nothing here is precious: removing the folder costs time, no data.

use crate::{error, source::ContentDigest};
use epsilon_api::{build::BuildError, ids::InstanceId};
use epsilon_launch::clear::clear;
use rustix::fs::{FlockOperation, flock};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};
use tokio_util::task::TaskTracker;

const FOLDERS: [&str; 8] =
    ["work", "npm", "dependencies", "layers", "shelf", "inspections", "images", "projects"];

/// Length of a key.
const KEY: usize = 64;

/// The folder.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    root: PathBuf,
    tasks: TaskTracker,
    _in_use: Arc<File>,
}

/// What opening the folder tells.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) cache: Cache,
    /// Random, made once; survives restarts.
    pub(crate) id: String,
    /// Nobody else uses the folder now: what looks left over is left over.
    pub(crate) alone: bool,
}

impl Cache {
    /// Opens the folder, making it where it is missing. Work of a builder that was killed is removed.
    pub(crate) fn open(root: &Path, size: u64, tasks: TaskTracker) -> io::Result<Opened> {
        for name in FOLDERS {
            fs::create_dir_all(root.join(name))?;
        }
        let lock = File::create(root.join("lock"))?;
        let alone = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if alone {
            for left in fs::read_dir(root.join("work"))? {
                remove(&left?.path());
            }
            // One cache for all projects, of an earlier release: any of them may have put something there.
            for left in fs::read_dir(root.join("npm"))?.flatten() {
                if left.file_name().len() != KEY {
                    remove(&left.path());
                }
            }
            for kind in ["dependencies", "layers"] {
                prune(&root.join(kind), size)?;
            }
        }
        flock(&lock, FlockOperation::LockShared)?;
        let id = own_id(&root.join("id"))?;
        let cache = Self { root: root.to_owned(), tasks, _in_use: Arc::new(lock) };
        Ok(Opened { cache, id, alone })
    }

    /// A fresh folder for one piece of work.
    pub(crate) fn work(&self) -> Result<Arc<WorkDir>, BuildError> {
        let path = self.root.join("work").join(InstanceId::random().as_str());
        fs::create_dir(&path).map_err(|err| error::file("making a folder to work in", &err))?;
        Ok(Arc::new(WorkDir { path, tasks: self.tasks.clone() }))
    }

    /// npm's own cache for whoever has this key. What is in it decides what is installed from it, and npm writes
    /// there what registries answered: nobody with another key sees it.
    pub(crate) fn npm(&self, key: ContentDigest) -> Result<PathBuf, BuildError> {
        let path = self.kept("npm", &key.to_string());
        fs::create_dir_all(&path)
            .and_then(|()| give(&path, container_user()))
            .map_err(|err| error::file("making a cache for npm", &err))?;
        Ok(path)
    }

    /// Where something that is kept lies, or would lie. Looking for it counts as use.
    pub(crate) fn kept(&self, kind: &'static str, name: &str) -> PathBuf {
        let path = self.root.join(kind).join(name);
        if let Ok(file) = File::open(&path) {
            let _ignored_on_read_only_disks = file.set_modified(SystemTime::now());
        }
        path
    }

    /// What was remembered under a key. Anything unreadable counts as forgotten.
    pub(crate) fn recall<T: DeserializeOwned>(&self, kind: &'static str, key: &str) -> Option<T> {
        let text = fs::read(self.root.join(kind).join(format!("{key}.json"))).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Remembers a value: whole or not at all, also when the machine stops in between.
    pub(crate) fn remember<T: Serialize>(
        &self,
        kind: &'static str,
        key: &str,
        value: &T,
    ) -> Result<(), BuildError> {
        let doing = "remembering a result";
        let text = serde_json::to_vec(value).map_err(|err| error::broken(doing, &err))?;
        let target = self.root.join(kind).join(format!("{key}.json"));
        let draft = self.root.join(kind).join(format!("{key}.{}", InstanceId::random()));
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, target))
            .map_err(|err| error::file(doing, &err))
    }
}

/// A folder of one piece of work. Dropping the last handle removes it, in the background.
#[derive(Debug)]
pub(crate) struct WorkDir {
    path: PathBuf,
    tasks: TaskTracker,
}

impl WorkDir {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A fresh folder in it that `owner` may write to.
    pub(crate) fn folder(&self, name: &str, owner: (u32, u32)) -> Result<PathBuf, BuildError> {
        let path = self.path.join(name);
        fs::create_dir(&path)
            .and_then(|()| give(&path, owner))
            .map_err(|err| error::file("making a folder to work in", &err))?;
        Ok(path)
    }

    /// An empty file in it that `owner` may write to.
    pub(crate) fn file(&self, name: &str, owner: (u32, u32)) -> Result<PathBuf, BuildError> {
        let path = self.path.join(name);
        File::create_new(&path)
            .and_then(|_| give(&path, owner))
            .map_err(|err| error::file("making a file to work with", &err))?;
        Ok(path)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        // The removal of a `node_modules` takes long enough to be kept off the runtime's own threads.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(self.tasks.spawn_blocking_on(move || remove(&path), &runtime)),
            Err(_) => remove(&path),
        }
    }
}

/// The user that throw-away containers run as, and that owns the folders mounted in them. Only root can
/// give folders away; another user's builder runs its containers as that user.
pub(crate) fn container_user() -> (u32, u32) {
    if rustix::process::geteuid().is_root() {
        (crate::image::USER, crate::image::USER)
    } else {
        (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
    }
}

/// Makes a path belong to a user, where this process may.
pub(crate) fn give(path: &Path, (uid, gid): (u32, u32)) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
    }
    Ok(())
}

fn own_id(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => match InstanceId::parse(text.trim()) {
            Ok(id) => return Ok(id.to_string()),
            Err(err) => tracing::warn!(%err, "The builder's id is damaged; a new one is made."),
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
        tracing::warn!(%err, path = %path.display(), "A folder of a build could not be removed.");
    }
}

/// Removes what was used least recently until the rest fits.
pub(crate) fn prune(folder: &Path, size: u64) -> io::Result<()> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        kept.push((entry.metadata()?.modified()?, entry.path()));
    }
    kept.sort_by(|a, b| b.cmp(a));
    let mut total = 0;
    for (_, path) in kept {
        total += weight(&path)?;
        if total > size {
            remove(&path);
        }
    }
    Ok(())
}

fn weight(path: &Path) -> io::Result<u64> {
    let about = fs::symlink_metadata(path)?;
    if !about.is_dir() {
        return Ok(about.len());
    }
    fs::read_dir(path)?.map(|entry| weight(&entry?.path())).sum()
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
        let cache = open(dir.path(), 0).cache;
        cache.remember("images", "k", &vec![1, 2]).unwrap();
        assert_eq!(cache.recall::<Vec<u8>>("images", "k"), Some(vec![1, 2]));
        fs::write(dir.path().join("images/k.json"), "[1,").unwrap();
        assert_eq!(cache.recall::<Vec<u8>>("images", "k"), None);
        assert_eq!(fs::read_dir(dir.path().join("images")).unwrap().count(), 1);
    }

    #[test]
    fn a_cache_of_npm_is_its_keys_alone() {
        let dir = tempfile::tempdir().unwrap();
        let shared = dir.path().join("npm/_cacache");
        fs::create_dir_all(&shared).unwrap();
        let cache = open(dir.path(), 0).cache;
        assert!(!shared.exists());
        let [one, two] =
            ["a", "b"].map(|key| cache.npm(ContentDigest::of(key.as_bytes())).unwrap());
        assert!(one.is_dir() && two.is_dir() && one != two);
        drop(cache);
        open(dir.path(), 0);
        assert!(one.exists());
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path(), 100).cache;
        for (name, age) in [("old", 3), ("used", 2), ("new", 1)] {
            let path = dir.path().join("layers").join(name);
            fs::write(&path, [0; 40]).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age * 1000)).unwrap();
        }
        cache.kept("layers", "used");
        drop(cache);
        open(dir.path(), 100);
        let exists = |name| dir.path().join("layers").join(name).exists();
        assert_eq!((exists("old"), exists("used"), exists("new")), (false, true, true));
    }
}
