//! Reads a backup from an untrusted source: its manifest first, then exactly the files that the
//! manifest lists, each with the listed size and digest. Links, devices, long names and files that
//! are not listed make it unfit.
//!
//! It is read twice: once to verify all of it, so that a damaged one leaves nothing; then into a
//! draft, verified again.

use super::{
    DATA,
    manifest::{self, LARGEST, Manifest, NAME},
};
use epsilon_builder::source::Hasher;
use flate2::read::MultiGzDecoder;
use std::{
    collections::HashMap,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, BufReader, Read, Write},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

/// Most bytes after the end of the archive: the padding of its last block.
const LARGEST_TAIL: u64 = 1 << 20;

/// Why a backup cannot be restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("it cannot be read")]
    File(#[from] io::Error),
    #[error("it is not a backup of `epsilon`: it does not begin with its list")]
    NotABackup,
    #[error(transparent)]
    List(#[from] manifest::ListError),
    #[error("`{}` in it is not on its list", .0.escape_default())]
    NotListed(String),
    #[error("`{}` in it is not a regular file", .0.escape_default())]
    NotRegular(String),
    #[error("`{0}` in it is damaged")]
    Damaged(String),
    #[error("it ends early: `{0}` is missing")]
    Missing(String),
    #[error("there is more after its end")]
    Trailing,
    #[error("it cannot be unpacked")]
    Draft(#[source] io::Error),
    #[error("it was interrupted")]
    Interrupted,
}

/// Verifies a backup, and unpacks it if a folder is given. `on_read` receives the size of each
/// piece of content that was read; `stop` interrupts.
pub(crate) fn read(
    file: &Path,
    into: Option<&Path>,
    on_read: &dyn Fn(u64),
    stop: &AtomicBool,
) -> Result<Manifest, Unfit> {
    let mut magic = [0; 2];
    let is_gzip = File::open(file)?.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    let from = BufReader::with_capacity(256 << 10, File::open(file)?);
    let from: Box<dyn Read> =
        if is_gzip { Box::new(MultiGzDecoder::new(from)) } else { Box::new(from) };
    let mut tar = tar::Archive::new(from);
    // Raw: extension entries with long names would be read into memory, whatever their size.
    let mut entries = tar.entries().map_err(|_| Unfit::NotABackup)?.raw(true);
    let manifest = match entries.next() {
        Some(Ok(entry)) => list(entry)?,
        Some(Err(_)) | None => return Err(Unfit::NotABackup),
    };
    let mut expected: HashMap<&str, &manifest::File> =
        manifest.files.iter().map(|file| (file.path.as_str(), file)).collect();
    for entry in entries {
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some(file) = expected.remove(path.as_str()) else {
            return Err(Unfit::NotListed(path));
        };
        if !entry.header().entry_type().is_file() {
            return Err(Unfit::NotRegular(path));
        }
        if entry.header().size().ok() != Some(file.bytes) {
            return Err(Unfit::Damaged(path));
        }
        let mut to = match into {
            Some(folder) => Some(create(&folder.join(&path)).map_err(Unfit::Draft)?),
            None => None,
        };
        if copy(&mut entry, to.as_mut(), on_read, stop)? != file.sha256 {
            return Err(Unfit::Damaged(path));
        }
        // Images are only passed to the engine; the data folder has to be durable.
        if let Some(to) = to.filter(|_| path.starts_with(DATA)) {
            to.sync_all().map_err(Unfit::Draft)?;
        }
    }
    // Reads to the end of the stream: gzip has its checksum there.
    let rest = io::copy(&mut tar.into_inner().take(LARGEST_TAIL + 1), &mut io::sink())?;
    if rest > LARGEST_TAIL {
        return Err(Unfit::Trailing);
    }
    let missing = expected.keys().min().map(|path| (*path).to_owned());
    missing.map_or(Ok(manifest), |missing| Err(Unfit::Missing(missing)))
}

fn list(entry: tar::Entry<'_, impl Read>) -> Result<Manifest, Unfit> {
    let is_list = &*entry.path_bytes() == NAME.as_bytes()
        && entry.header().entry_type().is_file()
        && entry.size() <= LARGEST;
    if !is_list {
        return Err(Unfit::NotABackup);
    }
    let mut text = Vec::new();
    entry.take(LARGEST).read_to_end(&mut text)?;
    Ok(Manifest::parse(&text)?)
}

/// Creates a file, and its folders, that only this user can read. [`Manifest::parse`] checked the
/// path.
fn create(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Copies the content and returns its digest.
fn copy(
    from: &mut impl Read,
    mut to: Option<&mut File>,
    on_read: &dyn Fn(u64),
    stop: &AtomicBool,
) -> Result<String, Unfit> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Unfit::Interrupted);
        }
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        if let Some(to) = &mut to {
            to.write_all(&buffer[..read]).map_err(Unfit::Draft)?;
        }
        on_read(read as u64);
    }
    Ok(hasher.finish().to_string())
}

#[cfg(test)]
mod tests;
