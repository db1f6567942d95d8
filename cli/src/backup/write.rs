//! Writes a backup. The file appears under its name only when it is complete; only its owner can
//! read it, because it holds keys.

use super::manifest::{self, Manifest};
use flate2::{Compression, GzBuilder};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};
use tar::{EntryType, Header};

/// Opens the content of one file.
pub(crate) type Open = Box<dyn Fn() -> io::Result<Box<dyn Read + Send>> + Send>;

/// One file of a backup, and how to open its content.
pub(crate) struct Piece {
    pub(crate) file: manifest::File,
    pub(crate) open: Open,
}

/// Writes a backup and returns its size in bytes. `on_write` receives the size of each piece of
/// content; `stop` interrupts.
pub(crate) fn write(
    target: &Path,
    manifest: &Manifest,
    pieces: &[Piece],
    on_write: &dyn Fn(u64),
    stop: &AtomicBool,
) -> io::Result<u64> {
    let draft = draft_of(target);
    let written = fill(&draft, is_compressed(target), manifest, pieces, on_write, stop)
        .and_then(|bytes| fs::rename(&draft, target).map(|()| bytes));
    match written {
        Ok(bytes) => {
            File::open(folder_of(target))?.sync_all()?;
            Ok(bytes)
        }
        Err(err) => {
            let _gone_or_never_there = fs::remove_file(&draft);
            Err(err)
        }
    }
}

/// Whether a file of this name is compressed.
fn is_compressed(target: &Path) -> bool {
    let ending = target.extension();
    ending.is_some_and(|ending| {
        ending.eq_ignore_ascii_case("gz") || ending.eq_ignore_ascii_case("tgz")
    })
}

/// The folder that a file is in.
pub(crate) fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn draft_of(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{}", std::process::id()))
}

fn fill(
    draft: &Path,
    is_compressed: bool,
    manifest: &Manifest,
    pieces: &[Piece],
    on_write: &dyn Fn(u64),
    stop: &AtomicBool,
) -> io::Result<u64> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    let out = BufWriter::with_capacity(256 << 10, &file);
    if is_compressed {
        let gz = GzBuilder::new().mtime(0).write(out, Compression::fast());
        pack(gz, manifest, pieces, on_write, stop)?.finish()?.flush()?;
    } else {
        pack(out, manifest, pieces, on_write, stop)?.flush()?;
    }
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

fn pack<W: Write>(
    out: W,
    manifest: &Manifest,
    pieces: &[Piece],
    on_write: &dyn Fn(u64),
    stop: &AtomicBool,
) -> io::Result<W> {
    let mut tar = tar::Builder::new(out);
    let list = serde_json::to_vec_pretty(manifest)?;
    tar.append(&header(manifest::NAME, list.len() as u64)?, &list[..])?;
    for piece in pieces {
        let header = header(&piece.file.path, piece.file.bytes)?;
        let mut content =
            LimitedReader { from: (piece.open)()?, left: piece.file.bytes, on_write, stop };
        tar.append(&header, &mut content)?;
        if content.left > 0 || content.from.read(&mut [0])? > 0 {
            let changed = format!("`{}` changed while it was packed", piece.file.path);
            return Err(io::Error::other(changed));
        }
    }
    tar.into_inner()
}

fn header(path: &str, bytes: u64) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(path)?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o600);
    header.set_size(bytes);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}

/// Reads at most the listed number of bytes; fails when interrupted.
struct LimitedReader<'a> {
    from: Box<dyn Read + Send>,
    left: u64,
    on_write: &'a dyn Fn(u64),
    stop: &'a AtomicBool,
}

impl Read for LimitedReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("it was interrupted"));
        }
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.from.read(&mut buffer[..most])?;
        self.left -= read as u64;
        (self.on_write)(read as u64);
        Ok(read)
    }
}
