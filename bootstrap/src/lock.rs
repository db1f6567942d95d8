//! One gateway per data folder. The lock is the kernel's: it ends with the process, whatever ends
//! that. The file's contents (process id, address) are for people and for the CLI.

use crate::{
    data_dir::{self, Holder},
    failure::Failure,
};
use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// A data folder held by this process until this is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Creates the folder if necessary and locks it.
    ///
    /// # Errors
    /// When the folder cannot be used, or another process uses it.
    pub fn take(data: &Path) -> Result<Self, Failure> {
        let unusable = |err: io::Error| {
            Failure::new("DATA_DIR", format!("the data folder `{}` cannot be used", data.display()))
                .with_cause(&err)
                .hint("name another with `--data-dir DIR` or EPSILON_DATA_DIR")
        };
        DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(unusable)?;
        let path = data_dir::lock_path(data);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o644);
        let file = options.open(&path).map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(already_locked(data)),
            Err(TryLockError::Error(err)) => return Err(unusable(err)),
        }
        let lock = Self { file, path };
        lock.write(None, None)?;
        Ok(lock)
    }

    /// Writes the control API's address for the CLI of this machine, and the authority of its
    /// certificate if it uses TLS.
    ///
    /// # Errors
    /// When the lock file cannot be written.
    pub fn write_address(&self, control: &str, authority: Option<&Path>) -> Result<(), Failure> {
        self.write(Some(control), authority)
    }

    fn write(&self, control: Option<&str>, authority: Option<&Path>) -> Result<(), Failure> {
        let holder = Holder {
            pid: std::process::id(),
            control: control.map(str::to_owned),
            authority: authority.map(Path::to_owned),
        };
        let mut file = &self.file;
        let written = serde_json::to_vec(&holder).map_err(io::Error::from).and_then(|text| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(&text)
        });
        written.map_err(|err| {
            let path = self.path.display();
            Failure::new("DATA_DIR", format!("`{path}` cannot be written")).with_cause(&err)
        })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A stale address would mislead the CLI, so the contents are removed; the lock itself is
        // released with the file. Removing the file instead would let a third process lock another
        // one.
        let _ = self.file.set_len(0);
    }
}

/// Whether a gateway uses this data folder now.
pub fn is_taken(data: &Path) -> bool {
    let held = File::open(data_dir::lock_path(data)).map(|file| file.try_lock_shared());
    matches!(held, Ok(Err(TryLockError::WouldBlock)))
}

fn already_locked(data: &Path) -> Failure {
    let pid = match data_dir::holder(data) {
        Some(holder) => format!("process {}", holder.pid),
        None => "another process".to_owned(),
    };
    Failure::new(
        "DATA_DIR_TAKEN",
        format!("another gateway uses the data folder `{}` ({pid})", data.display()),
    )
    .hint("stop it first, or use another folder with `--data-dir DIR`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_names_the_holder_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("new/folder");
        assert!(!is_taken(&data));
        let lock = Lock::take(&data).unwrap();
        assert!(is_taken(&data));
        lock.write_address("http://127.0.0.1:1", None).unwrap();
        let text = format!("{:?}", Lock::take(&data).unwrap_err());
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
        assert_eq!(data_dir::holder(&data).unwrap().control.unwrap(), "http://127.0.0.1:1");
        drop(lock);
        assert!(data_dir::holder(&data).is_none());
        assert!(!is_taken(&data));
        Lock::take(&data).unwrap();
    }
}
