//! Keeps caches within bounds of size and count: the least recently used entries are removed first.
//! Never fails a start or a build, whatever the folders contain, and never removes an entry that a
//! build of any process holds.
//!
//! The size of a folder is recorded in it when it is stored (`size`), so nothing is walked here. A
//! folder without one is of an earlier release; it is measured within bounds, and removed when that
//! fails.
//! made by an earlier release; it is looked at within bounds, and goes when that does not work.

use super::{
    remove,
    walk::{Bounds, Stopped, walk},
};
use epsilon_api::{chain::Chain, ids::InstanceId};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, DirEntry, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Bound of a group of caches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) bytes: u64,
    pub(crate) count: usize,
}

/// File in a cached folder, beside the content: its size in bytes.
const SIZE: &str = "size";

/// A cache entry.
struct Entry {
    used: SystemTime,
    path: PathBuf,
    bytes: u64,
}

/// Removes the least recently used entries from these folders until the rest is within the bound.
/// Entries are first moved into `trash`, a folder on the same disk, so that no lookup finds half of
/// one.
pub(crate) fn keep_within(bound: Bound, folders: &[PathBuf], trash: &Path) {
    let mut entries: Vec<Entry> = folders.iter().flat_map(|folder| list(folder)).collect();
    entries.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.path.cmp(&b.path)));
    let mut total: u64 = 0;
    for (at, one) in entries.iter().enumerate() {
        total = total.saturating_add(one.bytes);
        if (at >= bound.count || total > bound.bytes) && discard(&one.path, trash) {
            total = total.saturating_sub(one.bytes);
        }
    }
}

fn list(folder: &Path) -> Vec<Entry> {
    let entries = fs::read_dir(folder).inspect_err(|err| {
        tracing::warn!(error = %Chain(err), folder = %folder.display(), "Cache folder of the builder cannot be read; leaving it out of upkeep.");
    });
    entries.into_iter().flatten().filter_map(Result::ok).map(|entry| inspect(&entry)).collect()
}

fn inspect(entry: &DirEntry) -> Entry {
    let path = entry.path();
    let about = entry.metadata();
    let used = about.as_ref().ok().and_then(|about| about.modified().ok());
    let bytes = match &about {
        Ok(about) if about.is_dir() => size_of(&path),
        Ok(about) => Some(about.len()),
        Err(_) => None,
    };
    match (used, bytes) {
        (Some(used), Some(bytes)) => Entry { used, path, bytes },
        // Counts as the oldest, and as larger than the bound.
        _ => Entry { used: SystemTime::UNIX_EPOCH, path, bytes: u64::MAX },
    }
}

fn size_of(folder: &Path) -> Option<u64> {
    let written = fs::read_to_string(folder.join(SIZE)).ok();
    written.and_then(|text| text.trim().parse().ok()).or_else(|| measure(folder).ok())
}

/// Bytes of all files below a folder.
pub(crate) fn measure(folder: &Path) -> Result<u64, Stopped> {
    let mut total: u64 = 0;
    walk(folder, Bounds::default(), |entry| {
        total = total.saturating_add(entry.length());
        Ok::<_, Stopped>(())
    })?;
    Ok(total)
}

/// Records the size of a cached folder.
pub(crate) fn write_size(folder: &Path, bytes: u64) -> io::Result<()> {
    fs::write(folder.join(SIZE), bytes.to_string())
}

/// Removes one entry unless it is held.
fn discard(path: &Path, trash: &Path) -> bool {
    if let Ok(file) = File::open(path) {
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return false;
        }
        let gone = trash.join(format!("gone-{}", InstanceId::random()));
        if fs::rename(path, &gone).is_ok() {
            remove(&gone);
            return true;
        }
    }
    remove(path);
    true
}

#[cfg(test)]
mod tests {
    use super::{
        super::{CONTENT, walk::tests::nest},
        *,
    };
    use std::time::Duration;

    const COUNT: usize = 100;

    fn aged(path: &Path, seconds: u64) {
        File::open(path)
            .unwrap()
            .set_modified(SystemTime::now() - Duration::from_secs(seconds))
            .unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn folders() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (folder, trash) = (dir.path().join("folder"), dir.path().join("trash"));
        fs::create_dir(&folder).unwrap();
        fs::create_dir(&trash).unwrap();
        (dir, folder, trash)
    }

    #[test]
    fn least_recently_used_is_removed_first() {
        let (_dir, folder, trash) = folders();
        for (name, age) in [("old", 3000), ("used", 2000), ("new", 1000)] {
            fs::write(folder.join(name), [0; 40]).unwrap();
            aged(&folder.join(name), age);
        }
        let all = [folder.clone()];
        keep_within(Bound { bytes: 120, count: COUNT }, &all, &trash);
        assert_eq!(names(&folder).len(), 3);
        keep_within(Bound { bytes: 100, count: COUNT }, &all, &trash);
        assert_eq!(names(&folder), ["new", "used"]);
        keep_within(Bound { bytes: 100, count: 1 }, &all, &trash);
        assert_eq!(names(&folder), ["new"]);
        assert_eq!(names(&trash), [""; 0]);
        // Missing folders are no error.
        keep_within(Bound { bytes: 0, count: 0 }, &["/nowhere".into()], &trash);
    }

    #[test]
    fn sizes_are_read_from_what_was_written_beside() {
        let (_dir, folder, trash) = folders();
        for (name, age, size) in [("a", 2000, 10), ("b", 1000, 95)] {
            fs::create_dir(folder.join(name)).unwrap();
            write_size(&folder.join(name), size).unwrap();
            aged(&folder.join(name), age);
        }
        keep_within(Bound { bytes: 100, count: COUNT }, std::slice::from_ref(&folder), &trash);
        assert_eq!(names(&folder), ["b"]);
    }

    #[test]
    fn what_is_held_stays() {
        let (_dir, folder, trash) = folders();
        fs::write(folder.join("held"), [0; 40]).unwrap();
        let held = File::open(folder.join("held")).unwrap();
        flock(&held, FlockOperation::LockShared).unwrap();
        let none = Bound { bytes: 0, count: 0 };
        keep_within(none, std::slice::from_ref(&folder), &trash);
        assert_eq!(names(&folder), ["held"]);
        drop(held);
        keep_within(none, std::slice::from_ref(&folder), &trash);
        assert_eq!(names(&folder), [""; 0]);
    }

    #[test]
    fn unmeasurable_tree_is_removed_and_nothing_else() {
        let (_dir, folder, trash) = folders();
        for name in ["bomb", "fine"] {
            fs::create_dir_all(folder.join(name).join(CONTENT)).unwrap();
        }
        nest(&folder.join("bomb").join(CONTENT), 3000);
        fs::write(folder.join("fine/x"), [0; 40]).unwrap();
        keep_within(Bound { bytes: 1 << 20, count: COUNT }, std::slice::from_ref(&folder), &trash);
        assert_eq!(names(&folder), ["fine"]);
        assert_eq!(names(&trash), [""; 0]);
    }
}
