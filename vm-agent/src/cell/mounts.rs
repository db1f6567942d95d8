//! The mounts below `DATA/vm/cells`: one shared mount of that folder onto itself, and in it, for each cell that serves
//! a version, a read-only overlay of the version's layers. A cell's container has its `app` folder as `/app`, as a
//! slave: what is mounted here later appears there, and nothing that happens there comes back.
//!
//! The kernel's table is the only memory: a restarted agent finds its mounts there. Only this file mounts, the socket
//! directories of instances too ([`tmpfs`]). Called by `assign.rs`, by whoever clears a cell or an instance away, and by
//! `cell.rs` at start and end.

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

/// The kernel's table of the mounts that this process sees.
const TABLE: &str = "/proc/self/mountinfo";
/// More layers than a version may have in a cell. The kernel takes 500, and the data of one mount 4096 bytes.
const LAYERS_MAX: usize = 64;
/// Layers are data of somebody else: no set-user-id, no devices, and nothing to write to.
const CODE: MountFlags = MountFlags::RDONLY.union(MountFlags::NOSUID).union(MountFlags::NODEV);

/// What an instance needs to meet the agent: two sockets. Nothing in it is a program.
const SOCKETS: MountFlags = MountFlags::NOEXEC.union(MountFlags::NOSUID).union(MountFlags::NODEV);
const SOCKETS_LIMITS: &str = "size=1m,nr_inodes=64";

/// The folder of all cells, shared with the containers that are made from it.
#[derive(Debug)]
pub(crate) struct Mounts {
    root: PathBuf,
    /// A folder without anything, below the layer of a version that has only one: an overlay needs two.
    empty: PathBuf,
}

/// Why nothing can be mounted here. For the operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoMounts {
    #[error("the agent is not root")]
    NotRoot,
    #[error("the folder of cells cannot be shared with containers")]
    Share(#[source] io::Error),
    #[error("an overlay cannot be mounted there")]
    Overlay(#[source] io::Error),
}

impl Mounts {
    /// Makes `root` a shared mount, unless it is one, and tries whether an overlay can be mounted in it.
    pub(crate) fn open(root: &Path) -> Result<Self, NoMounts> {
        if !rustix::process::geteuid().is_root() {
            return Err(NoMounts::NotRoot);
        }
        let share = || -> io::Result<PathBuf> {
            fs::create_dir_all(root)?;
            let root = fs::canonicalize(root)?; // as the kernel's table has it
            share(&root)?;
            Ok(root)
        };
        let root = share().map_err(NoMounts::Share)?;
        let mounts = Self { empty: root.join("empty"), root };
        mounts.try_overlay().map_err(NoMounts::Overlay)?;
        Ok(mounts)
    }

    fn try_overlay(&self) -> io::Result<()> {
        fs::create_dir_all(&self.empty)?;
        let trial = self.root.join("trial");
        let (layer, target) = (trial.join("layer"), trial.join("app"));
        detach(&target)?; // of a trial that was cut
        fs::create_dir_all(&layer)?;
        fs::create_dir_all(&target)?;
        let tried = self.overlay(std::iter::once(layer.as_path()), &target);
        detach(&target)?;
        fs::remove_dir_all(&trial)?;
        tried
    }

    /// Mounts the folders over each other at `target`; they come bottom first.
    ///
    /// # Errors
    /// As the kernel said it; [`io::ErrorKind::InvalidInput`] for more layers than a mount takes.
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
        // By descriptor: a path may hold what the option's own syntax means, and may be long. The top comes first.
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

/// Mounts an empty tmpfs for the sockets of one instance at `target`; it belongs to that user.
pub(crate) fn tmpfs(target: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let data = format!("{SOCKETS_LIMITS},mode=0700,uid={uid},gid={gid}");
    let data = std::ffi::CString::new(data)?;
    mount("epsilon-sockets", target, "tmpfs", SOCKETS, data.as_c_str())?;
    Ok(())
}

/// Whether such a tmpfs can be mounted below `root`.
pub(crate) fn try_tmpfs(root: &Path) -> io::Result<()> {
    let trial = root.join("trial");
    detach(&trial)?; // of a trial that was cut
    fs::create_dir_all(&trial)?;
    let tried = tmpfs(&trial, 0, 0);
    detach(&trial)?;
    fs::remove_dir(&trial)?;
    tried
}

/// Folders at or below `root` that something is mounted on, in the order of the mounts. An agent without cells asks, too: the
/// one before may have had some.
pub(crate) fn found(root: &Path) -> io::Result<Vec<PathBuf>> {
    let root = match fs::canonicalize(root) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        root => root?,
    };
    let table = fs::read_to_string(TABLE)?;
    Ok(points(&table).map(|(point, _)| point).filter(|point| point.starts_with(&root)).collect())
}

/// Takes everything off, the shared mount itself last.
pub(crate) fn close(root: &Path) -> io::Result<()> {
    found(root)?.iter().rev().try_for_each(|point| detach(point))
}

/// Without its contents being opened: what the path says now is what is mounted.
fn folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Takes off whatever is mounted at `target`, several at one place, too; that nothing is mounted there, or that it is no
/// more, is fine.
pub(crate) fn detach(target: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    loop {
        match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Nothing is mounted there, or it is gone, or nothing can be mounted by this agent.
            Err(Errno::INVAL | Errno::NOENT | Errno::PERM) => return Ok(()),
            Err(err) => return Err(err.into()),
        }
    }
}

/// Makes `root` a mount point of its own whose mounts its containers see.
fn share(root: &Path) -> io::Result<()> {
    let ours: Vec<bool> = points(&fs::read_to_string(TABLE)?)
        .filter(|(point, _)| point == root)
        .map(|(_, is_shared)| is_shared)
        .collect();
    match ours.as_slice() {
        [true] => return Ok(()),
        [] => {}
        // Half made, or made twice: nothing below it can be of use to anybody.
        [..] => detach(root)?,
    }
    mount_bind(root, root)?;
    // Private first: else it shares with the mount that it lies in, and each overlay would be there twice.
    mount_change(root, MountPropagationFlags::PRIVATE)?;
    mount_change(root, MountPropagationFlags::SHARED)?;
    Ok(())
}

/// Mount points of the table, with whether each is shared: `36 35 98:0 /root /point options shared:1 - type …`.
fn points(table: &str) -> impl Iterator<Item = (PathBuf, bool)> {
    table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let point = unescape(fields.nth(4)?);
        let mut optional = fields.skip(1).take_while(|field| *field != "-");
        Some((PathBuf::from(point), optional.any(|field| field.starts_with("shared:"))))
    })
}

/// Blanks, tabs, line ends and backslashes stand there as `\` and three octal digits.
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
