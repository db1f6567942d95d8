//! The shelf of a builder on the same machine: plain tars, each named after its digest. They may go at any time, and
//! there is none on a VM of its own. Blocking.

use super::name::Name;
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

/// The tar of a layer; nothing when it is not here.
pub(super) fn find(shelf: &Path, name: &Name) -> io::Result<Option<File>> {
    let path: PathBuf = shelf.join(format!("{}.tar", name.hex()));
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}
