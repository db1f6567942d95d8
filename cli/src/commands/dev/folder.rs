//! The data folder of one run: state, sockets, keys. In the system's temporary folder, because
//! nothing of it is needed later and a socket's path must be short. Removed at the end; leftovers
//! of a kill -9 are removed by the next start.
//!
//! Any user may write to the temporary folder, and a folder made by another user could come with
//! keys. So the name cannot be guessed, and an existing folder is never used.

use crate::{data_dir, failure::Failure};
use epsilon_api::chain::Chain;
use epsilon_bootstrap::lock::Lock;
use epsilon_bootstrap::remove_untrusted_dir::clear;
use rustix::{io::Errno, process::Pid};
use std::{
    fs::{self, DirEntry, File, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Prefix of the folders' names; the process id, a dash and a random suffix follow.
const PREFIX: &str = "epsilon-dev-";
/// Closed to other users.
const MODE: u32 = 0o700;

/// A folder of this run; removed when dropped.
#[derive(Debug)]
pub(super) struct RunFolder {
    path: PathBuf,
    lock: Lock,
}

impl RunFolder {
    /// Creates it, after removing those of ended runs.
    pub(super) fn make() -> Result<Self, Failure> {
        Self::make_in(&std::env::temp_dir())
    }

    fn make_in(all: &Path) -> Result<Self, Failure> {
        remove_old(all);
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let mut folder = tempfile::Builder::new();
        folder.prefix(&prefix).permissions(Permissions::from_mode(MODE));
        let folder = folder.tempdir_in(all).map_err(|err| {
            let text = format!("cannot create a folder in `{}`", all.display());
            Failure::new("DATA_DIR", text).with_cause(&err).hint("set TMPDIR to another folder")
        })?;
        let lock = Lock::take(folder.path())?;
        Ok(Self { path: folder.keep(), lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the control address, so that other commands find the gateway: `epsilon --data-dir
    /// FOLDER logs NAME`.
    pub(super) fn write_address(&self, control: &str) -> Result<(), Failure> {
        self.lock.write_address(control, None)
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if let Err(error) = clear(&self.path) {
            tracing::warn!(error = %Chain(&error), path = %self.path.display(), "Data folder of this run could not be removed; the next start removes it.");
        }
    }
}

/// Only folders of this user: the names of others may be anything, and a held lock means a running
/// process.
fn remove_old(all: &Path) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(maker) else { continue };
        if !is_ours(&entry) || is_alive(process) {
            continue;
        }
        let is_over = File::open(data_dir::lock_path(&entry.path()))
            .is_ok_and(|lock| lock.try_lock().is_ok());
        if is_over {
            // Two starts may remove the same one.
            drop(clear(&entry.path()));
        }
    }
}

/// The process that made the folder of this name, if a run did.
fn maker(name: &str) -> Option<Pid> {
    let id = name.strip_prefix(PREFIX)?.split('-').next()?;
    Pid::from_raw(id.parse().ok().filter(|id| *id > 0)?)
}

/// Whether it is a real folder of this user, closed to all others.
fn is_ours(entry: &DirEntry) -> bool {
    let user = rustix::process::geteuid().as_raw();
    entry
        .metadata()
        .is_ok_and(|meta| meta.is_dir() && meta.uid() == user && meta.mode() & 0o777 == MODE)
}

/// Whether another process has this id. Our own id does not count: this run has made no folder yet.
fn is_alive(process: Pid) -> bool {
    process != rustix::process::getpid()
        && rustix::process::test_kill_process(process) != Err(Errno::SRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No process has this id: Linux has none above 2^22.
    const NO_PROCESS: i32 = i32::MAX;

    fn folder(all: &Path, name: &str, mode: u32) -> PathBuf {
        let path = all.join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    /// A folder that another user could create might come with a key in it.
    #[test]
    fn folder_is_new_and_closed_to_others() {
        let all = tempfile::tempdir().unwrap();
        let guessed = folder(all.path(), &format!("{PREFIX}{}", std::process::id()), 0o755);
        fs::write(guessed.join("admin.key"), "another user's").unwrap();
        let (one, two) =
            (RunFolder::make_in(all.path()).unwrap(), RunFolder::make_in(all.path()).unwrap());
        assert_ne!(one.path(), two.path());
        for run in [&one, &two] {
            assert!(!run.path().join("admin.key").exists(), "{run:?}");
            assert_eq!(fs::metadata(run.path()).unwrap().mode() & 0o777, 0o700, "{run:?}");
        }
        let path = one.path().to_owned();
        drop(one);
        assert!(!path.exists() && two.path().exists());
    }

    #[test]
    fn only_leftovers_of_killed_runs_are_removed() {
        let all = tempfile::tempdir().unwrap();
        for (row, name, mode, has_lock, stays) in [
            ("over", format!("{NO_PROCESS}-a1B2c3"), 0o700, true, false),
            (
                "over, of an id that is ours now",
                format!("{}-x", std::process::id()),
                0o700,
                true,
                false,
            ),
            ("of an older release", format!("{NO_PROCESS}"), 0o700, true, false),
            ("open to others", format!("{NO_PROCESS}-open"), 0o755, true, true),
            ("of a process that runs", "1-live".to_owned(), 0o700, true, true),
            ("not a run's", format!("{NO_PROCESS}-other"), 0o700, false, true),
            ("of another name", "mine".to_owned(), 0o700, true, true),
        ] {
            let path = folder(all.path(), &format!("{PREFIX}{name}"), mode);
            if has_lock {
                File::create(data_dir::lock_path(&path)).unwrap();
            }
            remove_old(all.path());
            assert_eq!(path.exists(), stays, "{row}");
        }
        let held = folder(all.path(), &format!("{PREFIX}{NO_PROCESS}-held"), 0o700);
        let lock = Lock::take(&held).unwrap();
        remove_old(all.path());
        assert!(
            held.exists(),
            "the holder of the lock lives, although the process id in the name does not"
        );
        drop(lock);
        remove_old(all.path());
        assert!(!held.exists());
    }
}
