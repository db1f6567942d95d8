//! A new folder for this build: created under the work folder, filled once, removed when dropped.

use super::{ContentDigest, Hasher, archive};
use crate::error;
use epsilon_api::{build::BuildError, chain::Chain};
use epsilon_bootstrap::remove_untrusted_dir::clear;
use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

/// Completes "while …" when something here fails.
const WRITING: &str = "writing the source";

/// Buffer size for copying contents.
const BUFFER: usize = 64 << 10;

/// Numbers the folders of this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The folder. Dropping it removes it with everything in it.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Creates a new folder.
    pub(super) fn make(work_dir: &Path) -> Result<Self, BuildError> {
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = work_dir.join(format!("source-{}-{number}", process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {
                    let folder = Self(path);
                    folder.set_mode(&folder.0, 0o755)?;
                    return Ok(folder);
                }
                // Left by an earlier process with our process id.
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
                Err(cause) => return Err(error::file(WRITING, &cause)),
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Sets modes explicitly, regardless of the umask: containers of other users read this.
    fn set_mode(&self, path: &Path, mode: u32) -> Result<(), BuildError> {
        fs::set_permissions(path, Permissions::from_mode(mode))
            .map_err(|cause| error::file(WRITING, &cause))
    }

    /// Creates one folder in an existing folder.
    pub(super) fn folder(&self, path: &str) -> Result<(), BuildError> {
        let path = self.0.join(path);
        fs::create_dir(&path).map_err(|cause| error::file(WRITING, &cause))?;
        self.set_mode(&path, 0o755)
    }

    /// Writes one new file, and computes its digest meanwhile.
    pub(super) fn file(
        &self,
        path: &str,
        executable: bool,
        content: &mut dyn Read,
    ) -> Result<(u64, ContentDigest), BuildError> {
        let path = self.0.join(path);
        let mode = if executable { 0o755 } else { 0o644 };
        // `create_new` never follows a link at the last component.
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
        let mut file: File = file.map_err(|cause| error::file(WRITING, &cause))?;
        let written = copy(content, &mut file)?;
        self.set_mode(&path, mode)?;
        Ok(written)
    }

    /// Opens a file that [`Self::file`] wrote.
    pub(super) fn open(&self, path: &str) -> Result<File, BuildError> {
        File::open(self.0.join(path)).map_err(|cause| error::file(WRITING, &cause))
    }

    /// Creates one link.
    pub(super) fn symlink(&self, path: &str, target: &str) -> Result<(), BuildError> {
        symlink(target, self.0.join(path)).map_err(|cause| error::file(WRITING, &cause))
    }
}

/// Copies content and computes its digest. Read errors are the archive's, write errors the disk's.
fn copy(from: &mut dyn Read, to: &mut dyn Write) -> Result<(u64, ContentDigest), BuildError> {
    let mut buffer = vec![0; BUFFER];
    let mut bytes = 0;
    let mut hasher = Hasher::default();
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok((bytes, hasher.finish())),
            Ok(count) => count,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
            Err(cause) => return Err(archive::unreadable(&cause)),
        };
        let piece = buffer.get(..count).unwrap_or_default();
        to.write_all(piece).map_err(|cause| error::file(WRITING, &cause))?;
        hasher.update(piece);
        bytes += count as u64;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.0);
        let remove = move || {
            if let Err(cause) = clear(&path) {
                // The work folder is emptied at the next start.
                tracing::warn!(path = %path.display(), error = %Chain(&cause), "Folder of a source could not be removed; the next start removes it.");
            }
        };
        // Thousands of files take a while: not on a thread that serves calls.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct FullDisk;

    impl Write for FullDisk {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_reported() {
        assert_eq!(copy(&mut &b"x"[..], &mut FullDisk).unwrap_err().code, "DISK_FULL");
    }
}
