//! Reads a backup, which may come from anywhere: its list first, then exactly the files that are on it, each of the size
//! and digest that stand there. Links, devices, long names and what is not on the list make it unfit.
//!
//! It is read twice: once to check all of it, so that a damaged one leaves nothing; then into a draft, checked again.

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

/// Most bytes behind the end of the archive: what fills its last block.
const LARGEST_REST: u64 = 1 << 20;

/// Why a backup is not restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("it cannot be read")]
    File(#[from] io::Error),
    #[error("it is no backup of `epsilon`: it does not begin with its list")]
    NoBackup,
    #[error(transparent)]
    List(#[from] manifest::ListError),
    #[error("`{}` in it is not on its list", .0.escape_default())]
    NotListed(String),
    #[error("`{}` in it is no plain file", .0.escape_default())]
    NoFile(String),
    #[error("`{0}` in it is damaged")]
    Damaged(String),
    #[error("it ends early: `{0}` is missing")]
    Missing(String),
    #[error("there is more behind its end")]
    More,
    #[error("it cannot be unpacked")]
    Draft(#[source] io::Error),
    #[error("it was ended")]
    Ended,
}

/// Checks all of a backup, and unpacks it where a folder is given. `told` hears of each piece of content.
pub(crate) fn read(
    file: &Path,
    into: Option<&Path>,
    told: &dyn Fn(u64),
    stop: &AtomicBool,
) -> Result<Manifest, Unfit> {
    let mut magic = [0; 2];
    let is_gzip = File::open(file)?.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    let from = BufReader::with_capacity(256 << 10, File::open(file)?);
    let from: Box<dyn Read> =
        if is_gzip { Box::new(MultiGzDecoder::new(from)) } else { Box::new(from) };
    let mut tar = tar::Archive::new(from);
    // Raw: a name that needs an entry of its own would be read into memory, however long it is.
    let mut entries = tar.entries().map_err(|_| Unfit::NoBackup)?.raw(true);
    let manifest = match entries.next() {
        Some(Ok(entry)) => list(entry)?,
        Some(Err(_)) | None => return Err(Unfit::NoBackup),
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
            return Err(Unfit::NoFile(path));
        }
        if entry.header().size().ok() != Some(file.bytes) {
            return Err(Unfit::Damaged(path));
        }
        let mut to = match into {
            Some(folder) => Some(create(&folder.join(&path)).map_err(Unfit::Draft)?),
            None => None,
        };
        if copy(&mut entry, to.as_mut(), told, stop)? != file.sha256 {
            return Err(Unfit::Damaged(path));
        }
        // Images go on into the engine; the data folder stays.
        if let Some(to) = to.filter(|_| path.starts_with(DATA)) {
            to.sync_all().map_err(Unfit::Draft)?;
        }
    }
    // To the end of the stream: there a compressed one has the sum of all its bytes.
    let rest = io::copy(&mut tar.into_inner().take(LARGEST_REST + 1), &mut io::sink())?;
    if rest > LARGEST_REST {
        return Err(Unfit::More);
    }
    let missing = expected.keys().min().map(|path| (*path).to_owned());
    missing.map_or(Ok(manifest), |missing| Err(Unfit::Missing(missing)))
}

fn list(entry: tar::Entry<'_, impl Read>) -> Result<Manifest, Unfit> {
    let is_list = &*entry.path_bytes() == NAME.as_bytes()
        && entry.header().entry_type().is_file()
        && entry.size() <= LARGEST;
    if !is_list {
        return Err(Unfit::NoBackup);
    }
    let mut text = Vec::new();
    entry.take(LARGEST).read_to_end(&mut text)?;
    Ok(Manifest::parse(&text)?)
}

/// A file that nobody else can read, in folders that nobody else can look into. The path was checked by the list.
fn create(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// The digest of what was read.
fn copy(
    from: &mut impl Read,
    mut to: Option<&mut File>,
    told: &dyn Fn(u64),
    stop: &AtomicBool,
) -> Result<String, Unfit> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Unfit::Ended);
        }
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        if let Some(to) = &mut to {
            to.write_all(&buffer[..read]).map_err(Unfit::Draft)?;
        }
        told(read as u64);
    }
    Ok(hasher.finish().to_string())
}

#[cfg(test)]
mod tests;
