//! The layer cache of a builder on the same machine (`vm_agent.layer_cache`): plain tars, each
//! named after its digest. They may disappear at any time, and a VM without a builder has none.
//! Blocking.

use super::name::Name;
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

/// Opens the tar of a layer; `None` when it is not cached.
pub(super) fn find(cache: &Path, name: &Name) -> io::Result<Option<File>> {
    let path: PathBuf = cache.join(format!("{}.tar", name.hex()));
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}
