//! Writes files below one directory and nowhere else: each component of a path is opened by itself
//! and never through a link, so that no name can lead out. Owner, times and permissions are set
//! here, not taken from the tar. Blocking. Called by `unpack.rs`.

use rustix::{
    fs::{
        AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, futimens, linkat,
        mkdirat, openat, statat, symlinkat, utimensat,
    },
    io::Errno,
};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

/// Owner (root, where cells are): everything. The code's user: read and execute. As in the layer's
/// image, so that a copy of a file is as writable as it is there.
const FOLDER: Mode = Mode::from_raw_mode(0o755);
const PROGRAM: Mode = Mode::from_raw_mode(0o755);
const PLAIN: Mode = Mode::from_raw_mode(0o644);

/// A directory that is being filled.
pub(super) struct Tree {
    root: OwnedFd,
    /// Open directories on the path of the last written file, outermost first: its neighbours
    /// usually follow.
    open: Vec<(OsString, OwnedFd)>,
}

impl Tree {
    /// Creates the directory.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        mkdirat(CWD, path, FOLDER)?;
        let root = enter(CWD, path.as_os_str())?;
        fchmod(&root, FOLDER)?; // independent of the umask
        Ok(Self { root, open: Vec::new() })
    }

    /// Creates a directory and its parents.
    pub(super) fn folder(&mut self, path: &[&OsStr]) -> io::Result<()> {
        self.within(path).map(drop)
    }

    /// Creates an empty file, to be written. `time`: its modification time, in seconds since 1970.
    pub(super) fn file(
        &mut self,
        path: &[&OsStr],
        is_program: bool,
        time: u64,
    ) -> io::Result<FileWriter> {
        let (folder, name) = self.parent(path)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?);
        Ok(FileWriter { file, mode: if is_program { PROGRAM } else { PLAIN }, time: changed(time) })
    }

    /// Creates a symbolic link to `target`, wherever that may be: it is only followed inside a
    /// container.
    pub(super) fn symlink(&mut self, path: &[&OsStr], target: &OsStr, time: u64) -> io::Result<()> {
        let (folder, name) = self.parent(path)?;
        symlinkat(target, folder, name)?;
        utimensat(folder, name, &changed(time), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    /// Creates another name of a file that is in the tree already.
    pub(super) fn hard_link(&mut self, path: &[&OsStr], other: &[&OsStr]) -> io::Result<()> {
        let (folder, name) = self.parent(other)?;
        let found = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if !rustix::fs::FileType::from_raw_mode(found.st_mode).is_file() {
            return Err(Errno::NOTDIR.into());
        }
        let from = folder.try_clone_to_owned()?;
        let (to, new) = self.parent(path)?;
        linkat(from, name, to, new, AtFlags::empty())?;
        Ok(())
    }

    fn parent<'a>(&mut self, path: &[&'a OsStr]) -> io::Result<(BorrowedFd<'_>, &'a OsStr)> {
        // The tree itself is not a file: a name that means it collides with it.
        let (name, above) = path.split_last().ok_or(Errno::EXIST)?;
        Ok((self.within(above)?, name))
    }

    fn within(&mut self, path: &[&OsStr]) -> io::Result<BorrowedFd<'_>> {
        let common = self.open.iter().zip(path).take_while(|((open, _), name)| open == *name);
        let common = common.count();
        self.open.truncate(common);
        for name in &path[common..] {
            let next = {
                let at = self.open.last().map_or(self.root.as_fd(), |(_, folder)| folder.as_fd());
                match mkdirat(at, *name, FOLDER) {
                    Ok(()) => {
                        let made = enter(at, name)?;
                        fchmod(&made, FOLDER)?;
                        made
                    }
                    Err(Errno::EXIST) => enter(at, name)?,
                    Err(err) => return Err(err.into()),
                }
            };
            self.open.push(((*name).to_owned(), next));
        }
        Ok(self.open.last().map_or(self.root.as_fd(), |(_, folder)| folder.as_fd()))
    }
}

/// A file while it is written.
pub(super) struct FileWriter {
    file: File,
    mode: Mode,
    time: Timestamps,
}

impl FileWriter {
    /// Sets its permissions and its time.
    pub(super) fn finish(self) -> io::Result<()> {
        fchmod(&self.file, self.mode)?;
        futimens(&self.file, &self.time)?;
        Ok(())
    }
}

impl io::Write for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a name could not be written because of an earlier entry of the same tree.
pub(super) fn is_collision(err: &io::Error) -> bool {
    let met = Errno::from_io_error(err);
    met.is_some_and(|met| [Errno::EXIST, Errno::NOTDIR, Errno::LOOP, Errno::ISDIR].contains(&met))
}

/// Opens a directory, and nothing else.
fn enter(at: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

fn changed(time: u64) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let seconds = i64::try_from(time).unwrap_or_default();
    Timestamps { last_access: omit, last_modification: Timespec { tv_sec: seconds, tv_nsec: 0 } }
}
