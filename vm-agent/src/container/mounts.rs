//! The mounts below `DATA/vm/cells`: one shared mount of that directory onto itself, and in it, for
//! each assigned cell, a read-only overlay of the version's layers. A cell's container has its
//! `app` directory as `/app`, as a slave mount: what is mounted here later appears there, and
//! nothing that is mounted there propagates back.
//!
//! The kernel's mount table is the only state: a restarted agent finds its mounts there. Only this
//! file mounts, the socket directories of instances too ([`tmpfs`]). Called by the assignment of a
//! cell (`instance/runner/assign.rs`), by the code that removes a cell or an instance, and by
//! `cell.rs` at start and shutdown.

use rustix::{
    fs::{Mode, OFlags},
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
    },
};
use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

/// The mount table of this process.
const TABLE: &str = "/proc/self/mountinfo";
/// Limit of layers in a cell. The kernel takes 500, and 4096 bytes of mount options.
const LAYERS_MAX: usize = 64;
/// Layers are untrusted data: no set-user-id, no devices, read-only.
const CODE: MountFlags = MountFlags::RDONLY.union(MountFlags::NOSUID).union(MountFlags::NODEV);

/// Socket directories hold two sockets, and no programs.
const SOCKETS: MountFlags = MountFlags::NOEXEC.union(MountFlags::NOSUID).union(MountFlags::NODEV);
const SOCKETS_LIMITS: &str = "size=1m,nr_inodes=64";

/// The directory of all cells, as a shared mount.
#[derive(Debug)]
pub(crate) struct Mounts {
    root: PathBuf,
    /// An empty directory, below the layer of a version that has only one: an overlay needs two.
    empty: PathBuf,
}

/// Why nothing can be mounted here. For the operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error("the agent is not root")]
    NotRoot,
    #[error("the directory of cells cannot be shared with containers")]
    Share(#[source] io::Error),
    #[error("an overlay cannot be mounted there")]
    Overlay(#[source] io::Error),
}

impl Mounts {
    /// Makes `root` a shared mount, unless it is one, and tries to mount an overlay in it.
    pub(crate) fn open(root: &Path) -> Result<Self, MountError> {
        if !rustix::process::geteuid().is_root() {
            return Err(MountError::NotRoot);
        }
        let share = || -> io::Result<PathBuf> {
            fs::create_dir_all(root)?;
            let root = fs::canonicalize(root)?; // as the kernel's table has it
            share(&root)?;
            Ok(root)
        };
        let root = share().map_err(MountError::Share)?;
        let mounts = Self { empty: root.join("empty"), root };
        mounts.try_overlay().map_err(MountError::Overlay)?;
        Ok(mounts)
    }

    fn try_overlay(&self) -> io::Result<()> {
        fs::create_dir_all(&self.empty)?;
        let trial = self.root.join("trial");
        let layer = trial.join("layer");
        let target = trial.join("app");
        detach(&target)?; // of an interrupted trial
        fs::create_dir_all(&layer)?;
        fs::create_dir_all(&target)?;
        let tried = self.overlay(std::iter::once(layer.as_path()), &target);
        detach(&target)?;
        fs::remove_dir_all(&trial)?;
        tried
    }

    /// Mounts the directories over each other at `target`, in the given order, bottom first.
    ///
    /// # Errors
    /// The kernel's error; [`io::ErrorKind::InvalidInput`] for more layers than a mount takes.
    pub(crate) fn overlay<'a>(
        &self,
        folders: impl Iterator<Item = &'a Path>,
        target: &Path,
    ) -> io::Result<()> {
        let mut lower: Vec<OwnedFd> = folders.map(folder).collect::<io::Result<_>>()?;
        if lower.len() > LAYERS_MAX {
            let text = format!("{} layers, and at most {LAYERS_MAX} can be mounted", lower.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        if lower.len() < 2 {
            lower.insert(0, folder(&self.empty)?);
        }
        // By descriptor: a path may be long, and may contain the option's own separators. The top
        // comes first.
        let mut data = String::from("lowerdir=");
        for (at, fd) in lower.iter().rev().enumerate() {
            let colon = if at == 0 { "" } else { ":" };
            data += &format!("{colon}/proc/self/fd/{}", fd.as_raw_fd());
        }
        let data = std::ffi::CString::new(data)?;
        mount("epsilon", target, "overlay", CODE, data.as_c_str())?;
        Ok(())
    }
}

/// Mounts an empty tmpfs for the sockets of one instance at `target`; the user owns it.
pub(crate) fn tmpfs(target: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let data = format!("{SOCKETS_LIMITS},mode=0700,uid={uid},gid={gid}");
    let data = std::ffi::CString::new(data)?;
    mount("epsilon-sockets", target, "tmpfs", SOCKETS, data.as_c_str())?;
    Ok(())
}

/// Tries whether such a tmpfs can be mounted below `root`.
pub(crate) fn try_tmpfs(root: &Path) -> io::Result<()> {
    let trial = root.join("trial");
    detach(&trial)?; // of an interrupted trial
    fs::create_dir_all(&trial)?;
    let tried = tmpfs(&trial, 0, 0);
    detach(&trial)?;
    fs::remove_dir(&trial)?;
    tried
}

/// Mount points at or below `root`, in the order of the mounts. Used by an agent without cells,
/// too: an earlier run may have had some.
pub(crate) fn found(root: &Path) -> io::Result<Vec<PathBuf>> {
    let root = match fs::canonicalize(root) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        root => root?,
    };
    let table = fs::read_to_string(TABLE)?;
    Ok(points(&table).map(|(point, _)| point).filter(|point| point.starts_with(&root)).collect())
}

/// Unmounts everything at or below `root`, the shared mount itself last.
pub(crate) fn close(root: &Path) -> io::Result<()> {
    found(root)?.iter().rev().try_for_each(|point| detach(point))
}

/// Opens a directory as a path only, so that a later rename does not change what is mounted.
fn folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Unmounts whatever is mounted at `target`, also several mounts on one point. Nothing mounted, or
/// a missing path, is fine.
pub(crate) fn detach(target: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    loop {
        match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not mounted, no such path, or an agent that may not mount at all.
            Err(Errno::INVAL | Errno::NOENT | Errno::PERM) => return Ok(()),
            Err(err) => return Err(err.into()),
        }
    }
}

/// Makes `root` a shared mount point, whose later mounts containers see.
fn share(root: &Path) -> io::Result<()> {
    let ours: Vec<bool> = points(&fs::read_to_string(TABLE)?)
        .filter(|(point, _)| point == root)
        .map(|(_, is_shared)| is_shared)
        .collect();
    match ours.as_slice() {
        [true] => return Ok(()),
        [] => {}
        // Half made, or made twice: nothing below it can be used.
        [..] => detach(root)?,
    }
    mount_bind(root, root)?;
    // Private first: else it shares with the parent mount, and each overlay would be there twice.
    mount_change(root, MountPropagationFlags::PRIVATE)?;
    mount_change(root, MountPropagationFlags::SHARED)?;
    Ok(())
}

/// Mount points of the table, and whether each is shared:
/// `36 35 98:0 /root /point options shared:1 - type …`.
fn points(table: &str) -> impl Iterator<Item = (PathBuf, bool)> {
    table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let point = unescape(fields.nth(4)?);
        let mut optional = fields.skip(1).take_while(|field| *field != "-");
        Some((PathBuf::from(point), optional.any(|field| field.starts_with("shared:"))))
    })
}

/// Decodes blanks, tabs, line ends and backslashes, which the table writes as `\` and three octal
/// digits.
fn unescape(field: &str) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\');
        let value =
            octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match value {
            Some(value) => {
                bytes.push(value);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests;
