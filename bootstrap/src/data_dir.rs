//! The platform's data folder on this machine, and what the CLI finds there: the admin key, and the
//! address of the `epsilon up` that holds the folder.

use crate::failure::Failure;
use epsilon_api::redacted::Secret;
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
};

/// The folder given by `--data-dir` or `EPSILON_DATA_DIR`, else `/var/lib/epsilon` for root, else
/// the XDG data folder.
///
/// # Errors
/// When there is no such folder: wrong usage.
pub fn locate(named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(dir) = named {
        return std::path::absolute(dir).map_err(|err| {
            Failure::usage("the data folder has no absolute path").with_cause(&err)
        });
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/epsilon"));
    }
    directories::ProjectDirs::from("", "", "epsilon")
        .map(|dirs| dirs.data_dir().to_owned())
        .ok_or_else(|| {
            Failure::usage("this user has no home folder to keep data in")
                .hint("say where with `--data-dir DIR` or EPSILON_DATA_DIR")
        })
}

/// The admin key that the gateway wrote.
///
/// # Errors
/// When the file cannot be read.
pub fn admin_key(data: &Path) -> io::Result<Secret<String>> {
    let text = std::fs::read_to_string(data.join("admin.key"))?;
    Ok(Secret::new(text.trim().to_owned()))
}

/// Contents of the lock file of a running `epsilon up`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its control address as a URL, once it listens.
    pub control: Option<String>,
    /// Path of its certificate's authority, where the address uses TLS.
    #[serde(default)]
    pub authority: Option<PathBuf>,
}

/// The file that an `epsilon up` locks while it uses the folder.
pub fn lock_path(data: &Path) -> PathBuf {
    data.join("up.lock")
}

/// The holder of the folder, as the lock file names it. Stale after a kill.
pub fn holder(data: &Path) -> Option<Holder> {
    serde_json::from_slice(&std::fs::read(lock_path(data)).ok()?).ok()
}
