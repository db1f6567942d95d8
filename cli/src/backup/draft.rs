//! The folder that a backup is unpacked into, and how it becomes the data folder: by one rename, so
//! that the data folder has all of it or nothing. A mount point cannot be replaced: there the draft
//! is inside of it, and its files are moved up one by one, the store last, because a data folder
//! without a store has no platform to start.

use super::{DATA, STORE};
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use std::{
    fs::{self, DirBuilder, File, Metadata},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// The folder that a backup is unpacked into. Removed with its content when dropped, unless
/// [`Draft::commit`] moved it.
#[derive(Debug)]
pub(crate) struct Draft {
    folder: TempDir,
    /// The data folder, with links resolved: a rename cannot replace a link.
    target: PathBuf,
    /// The empty folder that was there before; its owner and mode are taken over.
    before: Option<Metadata>,
    is_mount: bool,
}

impl Draft {
    /// Creates a draft of this data folder, on the same file system.
    pub(crate) fn new(target: &Path) -> io::Result<Self> {
        let target = match target.canonicalize() {
            Err(_) if fs::symlink_metadata(target).is_ok_and(|kind| kind.is_symlink()) => {
                return Err(io::Error::other("it is a dangling link"));
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => target.to_owned(),
            target => target?,
        };
        let parent = target.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        let before = fs::metadata(&target).ok();
        let parents = fs::metadata(parent)?;
        let is_mount = before
            .as_ref()
            .is_some_and(|before| before.dev() != parents.dev() || is_bind_mount(&target));
        let home = if is_mount { &target } else { parent };
        let folder = tempfile::Builder::new().prefix(".epsilon-restore-").tempdir_in(home)?;
        Ok(Self { folder, target, before, is_mount })
    }

    /// The folder to unpack into.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Moves the draft's data folder to its target.
    pub(crate) fn commit(self) -> io::Result<()> {
        let data = self.folder.path().join(DATA);
        DirBuilder::new().recursive(true).mode(0o700).create(&data)?;
        let mode = self.before.as_ref().map_or(0o700, |before| before.mode() & 0o7777);
        fs::set_permissions(&data, fs::Permissions::from_mode(mode))?;
        if let Some(before) = &self.before {
            chown_all(&data, before.uid(), before.gid())?;
        }
        if !self.is_mount {
            fs::rename(&data, &self.target)?;
            return File::open(self.target.parent().unwrap_or(Path::new("/")))?.sync_all();
        }
        let mut names = fs::read_dir(&data)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort_by_key(|name| name == STORE);
        for name in names {
            fs::rename(data.join(&name), self.target.join(&name))?;
        }
        File::open(&self.target)?.sync_all()
    }
}

/// Whether something is mounted on a folder, perhaps another folder of the same file system (a bind
/// mount). The draft has to be on the same mount: files cannot be renamed to another one. Kernels
/// before 5.8 do not say.
fn is_bind_mount(folder: &Path) -> bool {
    statx(CWD, folder, AtFlags::empty(), StatxFlags::empty())
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Gives all files to the owner of the former folder: a service need not be root.
fn chown_all(path: &Path, user: u32, group: u32) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?;
    if (kind.uid(), kind.gid()) != (user, group) {
        chown(path, Some(user), Some(group))?;
    }
    if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            chown_all(&entry?.path(), user, group)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(draft: &Draft) {
        fs::create_dir(draft.path().join(DATA)).unwrap();
        fs::write(draft.path().join(DATA).join(STORE), "store").unwrap();
        fs::create_dir(draft.path().join("images")).unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_draft_becomes_the_folder_or_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for (target, exists) in [("new/deep/data", false), ("there", true)] {
            let target = dir.path().join(target);
            if exists {
                fs::create_dir(&target).unwrap();
                fs::set_permissions(&target, fs::Permissions::from_mode(0o750)).unwrap();
            }
            let dropped = Draft::new(&target).unwrap();
            unpack(&dropped);
            drop(dropped);
            assert_eq!(target.exists(), exists, "as it was");
            let draft = Draft::new(&target).unwrap();
            unpack(&draft);
            draft.commit().unwrap();
            assert_eq!(names(&target), [STORE]);
            let mode = fs::metadata(&target).unwrap().mode() & 0o777;
            assert_eq!(mode, if exists { 0o750 } else { 0o700 });
            assert!(names(target.parent().unwrap()).iter().all(|name| !name.starts_with('.')));
        }
    }

    #[test]
    fn a_folder_that_is_a_mount_is_filled() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("data");
        fs::create_dir(&target).unwrap();
        let draft = Draft { is_mount: true, ..Draft::new(&target).unwrap() };
        unpack(&draft);
        draft.commit().unwrap();
        assert_eq!(names(&target), [STORE]);
    }

    #[test]
    fn a_link_stays_and_its_target_is_filled() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, target) = (dir.path().join("disk/data"), dir.path().join("data"));
        fs::create_dir_all(&disk).unwrap();
        std::os::unix::fs::symlink(&disk, &target).unwrap();
        let draft = Draft::new(&target).unwrap();
        unpack(&draft);
        draft.commit().unwrap();
        assert!(target.is_symlink());
        assert_eq!((names(&disk), names(&target)), (vec![STORE.into()], vec![STORE.into()]));

        fs::remove_dir_all(&disk).unwrap();
        let dangling = Draft::new(&target).unwrap_err().to_string();
        assert!(dangling.contains("dangling"), "{dangling}");
    }

    /// Only root can mount: `make test` runs as root, and fails where that may not; others leave
    /// this out.
    #[test]
    fn a_bind_mount_is_a_mount() {
        let dir = tempfile::tempdir().unwrap();
        let (other, target) = (dir.path().join("other"), dir.path().join("data"));
        fs::create_dir(&other).unwrap();
        fs::create_dir(&target).unwrap();
        assert!(!is_bind_mount(&target));
        let mount = |args: &[&Path]| std::process::Command::new("mount").args(args).status();
        let bound = mount(&[Path::new("--bind"), &other, &target]);
        if fs::metadata(dir.path()).unwrap().uid() != 0 {
            return;
        }
        assert!(bound.unwrap().success());
        let draft = Draft::new(&target).unwrap();
        unpack(&draft);
        let committed = draft.commit();
        let unmounted = std::process::Command::new("umount").arg(&target).status();
        committed.unwrap();
        assert!(unmounted.unwrap().success());
        assert_eq!((names(&other), names(&target)), (vec![STORE.into()], vec![]));
    }

    /// Files that appeared meanwhile are not overwritten.
    #[test]
    fn a_folder_that_is_no_longer_empty_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("data");
        let draft = Draft::new(&target).unwrap();
        unpack(&draft);
        fs::create_dir(&target).unwrap();
        fs::write(target.join("mine"), "x").unwrap();
        assert!(draft.commit().is_err());
        assert_eq!(names(&target), ["mine"]);
        assert_eq!(names(dir.path()), ["data"]);
    }
}
