//! The folder of one run: state, sockets, keys. In the system's temporary folder, because nothing of it is worth
//! keeping and a socket's path must be short. Removed at the end; what a kill -9 left is removed by the next start.

use crate::{data_dir, failure::Failure};
use epsilon_launch::lock::Lock;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

/// How the folders are called; the process's id follows.
const PREFIX: &str = "epsilon-dev-";

/// A folder that is ours until this is dropped.
#[derive(Debug)]
pub(super) struct RunFolder {
    path: PathBuf,
    lock: Lock,
}

impl RunFolder {
    /// Makes it, after removing those of runs that are over.
    pub(super) fn make() -> Result<Self, Failure> {
        let all = std::env::temp_dir();
        remove_old(&all);
        let path = all.join(format!("{PREFIX}{}", std::process::id()));
        let lock = Lock::take(&path)?;
        Ok(Self { path, lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Other verbs find the gateway here: `epsilon --data-dir FOLDER logs NAME`.
    pub(super) fn announce(&self, control: &str) -> Result<(), Failure> {
        self.lock.announce(control)
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "The folder was not removed.");
        }
    }
}

/// Ours alone: the names of others' folders may be anything, and a lock that is held is somebody's life.
fn remove_old(all: &Path) {
    let user = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let is_one = entry.file_name().to_str().is_some_and(|name| {
            name.strip_prefix(PREFIX).is_some_and(|id| id.parse::<u32>().is_ok())
        });
        let is_ours = || {
            use std::os::unix::fs::MetadataExt as _;
            entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == user)
        };
        if !is_one || !is_ours() {
            continue;
        }
        let is_over = File::open(data_dir::lock_path(&entry.path()))
            .is_ok_and(|lock| lock.try_lock().is_ok());
        if is_over {
            // Two starts may remove the same one.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}
