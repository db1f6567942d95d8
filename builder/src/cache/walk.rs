//! Walks a folder that untrusted code could write to, whatever it contains. Goes by descriptors and
//! never by a long path, follows no link, does not recurse, and stops at bounds: depth, path
//! length, number of entries.
//!
//! Removing such a folder has no bounds and is done by `epsilon_bootstrap::remove_untrusted_dir`.
//! Used for sizes, for packing, and for reading the result of a build command.

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat},
    io::Errno,
};
use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

/// Bounds of a walk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Depth of nested folders.
    pub(crate) depth: usize,
    /// Bytes of a path relative to the walked folder.
    pub(crate) path: usize,
    /// Files and folders in all.
    pub(crate) entries: u64,
}

impl Default for Bounds {
    /// The largest installs have some 200,000 files, 40 levels, and paths of 300 bytes.
    fn default() -> Self {
        Self { depth: 128, path: 1024, entries: 2_000_000 }
    }
}

/// Why a walk stopped early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stopped {
    #[error("`{0}…` has more than {1} nested folders")]
    Deep(String, usize),
    #[error("`{0}…` has a path of more than {1} bytes")]
    Long(String, usize),
    #[error("there are more than {0} files and folders")]
    Many(u64),
    #[error("a folder cannot be read")]
    Unreadable(#[from] io::Error),
}

/// One entry below the folder.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    /// Relative to the walked folder; bytes, because it may not be UTF-8.
    pub(crate) path: &'a [u8],
    about: &'a Stat,
    within: BorrowedFd<'a>,
    name: &'a CStr,
}

impl Entry<'_> {
    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.about.st_mode)
    }

    /// Length of the file: a sparse file takes this much in a layer.
    pub(crate) fn length(&self) -> u64 {
        u64::try_from(self.about.st_size).unwrap_or_default()
    }

    /// Bytes on disk.
    pub(crate) fn on_disk(&self) -> u64 {
        /// Unit of `stat`'s block count.
        const BLOCK: u64 = 512;
        u64::try_from(self.about.st_blocks).unwrap_or_default().saturating_mul(BLOCK)
    }

    pub(crate) fn is_executable(&self) -> bool {
        Mode::from_raw_mode(self.about.st_mode).contains(Mode::XUSR)
    }

    /// Opens it, if it is still a regular file.
    pub(crate) fn open(&self) -> io::Result<std::fs::File> {
        // Non-blocking: a pipe that replaced the file must not block.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = std::fs::File::from(openat(self.within, self.name, flags, Mode::empty())?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// The target, if it is a link.
    pub(crate) fn target(&self) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(self.within, self.name, Vec::new())?.into_bytes())
    }
}

/// Calls `visit` with each entry below `folder`, a folder before its content. Entries that vanish
/// meanwhile are skipped.
pub(crate) fn walk<E: From<Stopped>>(
    folder: &Path,
    bounds: Bounds,
    mut visit: impl FnMut(&Entry<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let broken = |err: Errno| E::from(Stopped::Unreadable(err.into()));
    let top = open(rustix::fs::CWD, folder).and_then(Dir::new).map_err(broken)?;
    // Each open folder, and the length of its path.
    let mut levels = vec![(top, 0)];
    let mut path: Vec<u8> = Vec::new();
    let mut entries = 0;
    while let Some((here, end)) = levels.last_mut() {
        path.truncate(*end);
        let entry = match here.read() {
            Some(entry) => entry.map_err(broken)?,
            None => {
                levels.pop();
                continue;
            }
        };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let within = here.fd().map_err(broken)?;
        let about = match statat(within, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(about) => about,
            Err(Errno::NOENT) => continue,
            Err(err) => return Err(broken(err)),
        };
        entries += 1;
        if entries > bounds.entries {
            return Err(Stopped::Many(bounds.entries).into());
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(name.to_bytes());
        if path.len() > bounds.path {
            return Err(Stopped::Long(beginning(&path), bounds.path).into());
        }
        let found = Entry { path: &path, about: &about, within, name };
        visit(&found)?;
        if !found.kind().is_dir() {
            continue;
        }
        match open(within, name).and_then(Dir::new) {
            Ok(_) if levels.len() >= bounds.depth => {
                return Err(Stopped::Deep(beginning(&path), bounds.depth).into());
            }
            Ok(below) => levels.push((below, path.len())),
            // Removed or replaced meanwhile.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(err) => return Err(broken(err)),
        }
    }
    Ok(())
}

fn open(at: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// The beginning of a path, enough to find it by.
fn beginning(path: &[u8]) -> String {
    crate::text::short(&String::from_utf8_lossy(path))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs;

    /// Makes nested folders, deeper than a path can express.
    pub(crate) fn nest(folder: &Path, levels: usize) {
        let mut at = open(rustix::fs::CWD, folder).unwrap();
        for _ in 0..levels {
            rustix::fs::mkdirat(&at, "a", Mode::RWXU).unwrap();
            at = open(&at, "a").unwrap();
        }
    }

    fn look(folder: &Path, bounds: Bounds) -> Result<Vec<String>, Stopped> {
        let mut seen = Vec::new();
        walk(folder, bounds, |entry| {
            seen.push(String::from_utf8_lossy(entry.path).into_owned());
            Ok::<_, Stopped>(())
        })?;
        seen.sort();
        Ok(seen)
    }

    #[test]
    fn walk_visits_everything_and_follows_no_links() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/x"), "text").unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("a/out")).unwrap();
        let seen = look(dir.path(), Bounds::default()).unwrap();
        assert_eq!(seen, ["a", "a/b", "a/b/x", "a/out"]);
        let link = dir.path().join("a/out");
        assert!(matches!(look(&link, Bounds::default()), Err(Stopped::Unreadable(_))));
    }

    #[test]
    fn a_look_ends_at_its_bounds() {
        let bounds = Bounds { depth: 128, path: 1024, entries: 200 };
        let deep = |levels| {
            let dir = tempfile::tempdir().unwrap();
            nest(dir.path(), levels);
            look(dir.path(), bounds)
        };
        assert_eq!(deep(127).unwrap().len(), 127);
        assert!(matches!(deep(128), Err(Stopped::Deep(_, 128))));
        assert!(matches!(deep(5000), Err(Stopped::Deep(_, 128))));
        let dir = tempfile::tempdir().unwrap();
        let long = ["x".repeat(200).as_str(); 5].join("/");
        fs::create_dir_all(dir.path().join(&long)).unwrap();
        assert!(look(dir.path(), bounds).is_ok());
        fs::write(dir.path().join(&long).join("y".repeat(20)), "").unwrap();
        assert!(matches!(look(dir.path(), bounds), Err(Stopped::Long(_, 1024))));
        let dir = tempfile::tempdir().unwrap();
        (0..201).for_each(|n| fs::write(dir.path().join(n.to_string()), "").unwrap());
        assert!(matches!(look(dir.path(), bounds), Err(Stopped::Many(200))));
    }
}
