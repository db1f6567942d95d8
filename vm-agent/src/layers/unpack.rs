//! Unpacks a layer's tar into a directory: only what is below `app/`, and only what code is made
//! of. Everything else makes the layer unfit to be mounted, so that its version takes the image
//! path; nothing is skipped silently.
//!
//! | entry | result |
//! |---|---|
//! | file, directory, symbolic link, hard link to a file of the same layer | unpacked; owner, permissions and attributes are ours |
//! | set-user-id, set-group-id, sticky, capabilities, other attributes | stripped |
//! | device, pipe, socket, sparse file | unfit |
//! | absolute name, `..`, a name below a link, a duplicate name | unfit |
//! | whiteout (`.wh.…`): removes what a lower layer has | unfit |
//! | anything outside `app/` | ignored: it belongs to the base |
//!
//! Blocking. `Tree` ensures that nothing is written elsewhere, whatever the names say.

use super::tree::{Tree, is_collision};
use std::{
    cell::Cell,
    ffi::OsStr,
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
};
use tar::{Archive, Entry, EntryType};

/// The directory of the code in a layer, and in the directory of an unpacked layer.
pub(super) const APP: &str = "app";
/// Limit of files and directories in one layer: the largest installations have 200,000, and each
/// takes an inode.
const ENTRIES: u64 = 500_000;
/// Limit of nested directories: each one is open while those below it are written.
const DEPTH: usize = 128;
/// Longest name of one file: the limit of file systems.
const NAME: usize = 255;
/// Limit of names and attributes of one entry in the tar, in bytes; they are held in memory.
const HEADERS: u64 = 1 << 20;
/// Size of the smallest file on disk, in bytes.
const BLOCK: u64 = 4096;

/// Why a tar was not unpacked.
#[derive(Debug)]
pub(super) enum UnpackError {
    /// It is complete, but not a tree of code. The text is for people.
    Unfit(String),
    /// It is not a tar, or truncated.
    Corrupt(io::Error),
    /// The directory could not be written.
    Disk(io::Error),
}

/// Unpacks a tar into `to`, which is created, and reads it to its end. Returns its size on disk, in
/// bytes.
pub(super) fn unpack(from: impl Read, to: &Path, most: u64) -> Result<u64, UnpackError> {
    let left = Cell::new(HEADERS);
    let mut archive = Archive::new(Guarded { from, left: &left });
    let mut work = Unpacker {
        tree: Tree::create(to).map_err(UnpackError::Disk)?,
        buffer: vec![0; 128 << 10],
        left: &left,
        most,
        bytes: 0,
    };
    let mut seen = 0;
    for entry in archive.entries().map_err(UnpackError::Corrupt)? {
        let mut entry = entry.map_err(|err| match left.get() {
            0 => unfit("names that are too long"),
            _ => UnpackError::Corrupt(err),
        })?;
        seen += 1;
        if seen > ENTRIES {
            return Err(unfit(format!("more than {ENTRIES} files")));
        }
        work.entry(&mut entry)?;
        left.set(HEADERS);
    }
    // The rest is padding, but part of the digest.
    left.set(u64::MAX);
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(UnpackError::Corrupt)?;
    Ok(work.bytes)
}

struct Unpacker<'a> {
    tree: Tree,
    buffer: Vec<u8>,
    left: &'a Cell<u64>,
    /// Limit of `bytes`.
    most: u64,
    bytes: u64,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), UnpackError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return self.skip(entry); // comments, as git writes them
        }
        let name = entry.path_bytes().into_owned();
        let Some(path) = below_app(&name)? else { return self.skip(entry) };
        let time = entry.header().mtime().unwrap_or_default();
        self.count(BLOCK, &name)?;
        let done = match kind {
            EntryType::Directory => self.tree.folder(&path),
            EntryType::Regular => return self.file(entry, &name, &path, time),
            EntryType::Symlink => {
                let target = link_of(entry, &name)?;
                self.tree.symlink(&path, OsStr::from_bytes(&target), time)
            }
            EntryType::Link => {
                let target = link_of(entry, &name)?;
                let other = below_app(&target)?.ok_or_else(|| {
                    unfit(format!("`{}` is a link to a file of another layer", text(&name)))
                })?;
                self.tree.hard_link(&path, &other)
            }
            _ => return Err(unfit(format!("`{}` is neither a file nor a directory", text(&name)))),
        };
        done.map_err(|err| write_failure(err, &name))?;
        self.skip(entry)
    }

    fn file<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        name: &[u8],
        path: &[&OsStr],
        time: u64,
    ) -> Result<(), UnpackError> {
        self.count(entry.size().div_ceil(BLOCK).saturating_mul(BLOCK), name)?;
        let is_program = entry.header().mode().unwrap_or_default() & 0o111 != 0;
        let made = self.tree.file(path, is_program, time);
        let mut file = made.map_err(|err| write_failure(err, name))?;
        let mut missing = entry.size();
        self.left.set(u64::MAX);
        while missing > 0 {
            let n = entry.read(&mut self.buffer).map_err(UnpackError::Corrupt)?;
            if n == 0 {
                return Err(UnpackError::Corrupt(io::ErrorKind::UnexpectedEof.into()));
            }
            file.write_all(&self.buffer[..n]).map_err(UnpackError::Disk)?;
            missing = missing.saturating_sub(n as u64);
        }
        file.finish().map_err(UnpackError::Disk)
    }

    /// Reads an entry's content to its end.
    fn skip<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), UnpackError> {
        self.left.set(u64::MAX);
        let read = io::copy(entry, &mut io::sink()).map_err(UnpackError::Corrupt)?;
        if read < entry.size() {
            return Err(UnpackError::Corrupt(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    /// Counts before anything is written: a layer must not fill the disk first.
    fn count(&mut self, bytes: u64, name: &[u8]) -> Result<(), UnpackError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.most {
            let most = epsilon_api::units::Bytes(self.most);
            return Err(unfit(format!("with `{}` it is larger than {most}", text(name))));
        }
        Ok(())
    }
}

/// The components of a name below `app`; `None` for a name outside.
fn below_app(name: &[u8]) -> Result<Option<Vec<&OsStr>>, UnpackError> {
    let bad = |why: &str| Err(unfit(format!("`{}` {why}", text(name))));
    if name.starts_with(b"/") {
        return bad("is an absolute name");
    }
    let mut steps = Vec::new();
    for step in name.split(|byte| *byte == b'/') {
        match step {
            b"" | b"." => {}
            b".." => return bad("leads out of its directory"),
            _ if step.starts_with(b".wh.") => {
                return bad("removes something of a lower layer");
            }
            _ if step.len() > NAME || step.contains(&0) => return bad("is not a valid file name"),
            _ => steps.push(OsStr::from_bytes(step)),
        }
    }
    if steps.len() > DEPTH {
        return bad("is too deep");
    }
    match steps.split_first() {
        Some((first, below)) if *first == APP => Ok(Some(below.to_vec())),
        _ => Ok(None),
    }
}

fn link_of<R: Read>(entry: &Entry<'_, R>, name: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let target = entry.link_name_bytes().filter(|target| {
        !target.is_empty() && target.len() < 4096 && !target.contains(&0) // PATH_MAX
    });
    target
        .map(std::borrow::Cow::into_owned)
        .ok_or_else(|| unfit(format!("`{}` is a link to nowhere", text(name))))
}

fn write_failure(err: io::Error, name: &[u8]) -> UnpackError {
    match err.kind() {
        _ if is_collision(&err) => unfit(format!("`{}` collides with another entry", text(name))),
        io::ErrorKind::NotFound => unfit(format!("`{}` is a link to nowhere", text(name))),
        _ => UnpackError::Disk(err),
    }
}

fn unfit(why: impl Into<String>) -> UnpackError {
    UnpackError::Unfit(why.into())
}

/// A name in readable and bounded form.
fn text(name: &[u8]) -> String {
    let shown: String = String::from_utf8_lossy(name).escape_debug().take(200).collect();
    shown
}

/// Ends the archive when an entry's headers exceed their limit: the tar crate buffers what it reads
/// between two entries.
struct Guarded<'a, R> {
    from: R,
    left: &'a Cell<u64>,
}

impl<R: Read> Read for Guarded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 && !buffer.is_empty() {
            return Err(io::Error::other("the limit of an entry's headers"));
        }
        let n = self.from.read(&mut buffer[..most])?;
        self.left.set(left.saturating_sub(n as u64));
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
