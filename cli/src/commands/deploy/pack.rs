//! The project's archive, a tar.gz created while it is sent: no temporary file, and bounded memory.
//! The same tree gives the same bytes: sorted, zero times, no owner.

use super::tree::{Entry, Kind, Tree};
use crate::failure::Failure;
use bytes::Bytes;
use flate2::{Compression, GzBuilder, write::GzEncoder};
use reqwest::Body;
use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::Path,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Size of a piece in bytes: some of them fill a loopback socket's buffer.
const PIECE: usize = 64 << 10;
/// Pieces queued for the network: packing is faster than a slow uplink.
const PIECES_WAITING: usize = 8;

/// Starts packing. The body ends with the archive; the future returns an error of reading a file.
/// `advance` is called with the size of each packed piece.
pub(super) fn stream(
    tree: Tree,
    advance: impl Fn(u64) + Send + 'static,
) -> (Body, impl Future<Output = Result<(), Failure>>) {
    let (sender, receiver) = mpsc::channel(PIECES_WAITING);
    let packing = tokio::task::spawn_blocking(move || {
        let out = BufWriter::with_capacity(PIECE, Sender(sender.clone()));
        let packed = pack(&tree, out, &advance);
        if let Err(PackError::File(_)) = &packed {
            // The archive must not look complete.
            let _ = sender.blocking_send(Err(io::Error::other("a file could not be packed")));
        }
        packed
    });
    let outcome = async move {
        match packing.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(PackError::File(failure))) => Err(failure),
            // The gateway stopped reading: its answer explains why.
            Ok(Err(PackError::Disconnected)) => Ok(()),
            Err(err) => Err(Failure::new("PACKING", "packing panicked").with_cause(&err)),
        }
    };
    (Body::wrap_stream(ReceiverStream::new(receiver)), outcome)
}

enum PackError {
    File(Failure),
    Disconnected,
}

fn pack(tree: &Tree, out: impl Write, advance: &dyn Fn(u64)) -> Result<(), PackError> {
    let gz: GzEncoder<_> =
        GzBuilder::new().mtime(0).operating_system(255).write(out, Compression::fast());
    let mut tar = tar::Builder::new(gz);
    for entry in &tree.entries {
        append(&mut tar, &tree.root, entry, advance)?;
    }
    let finished = tar.into_inner().and_then(GzEncoder::finish).and_then(|mut out| out.flush());
    finished.map_err(|_| PackError::Disconnected)
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    root: &Path,
    entry: &Entry,
    advance: &dyn Fn(u64),
) -> Result<(), PackError> {
    let mut header = tar::Header::new_gnu();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    match &entry.kind {
        Kind::Folder => {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            let path = entry.path.join(""); // ends with a slash
            tar.append_data(&mut header, path, io::empty()).map_err(|_| PackError::Disconnected)
        }
        Kind::Link { target } => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            tar.append_link(&mut header, &entry.path, target).map_err(|_| PackError::Disconnected)
        }
        Kind::File { bytes, executable } => {
            header.set_mode(if *executable { 0o755 } else { 0o644 });
            header.set_size(*bytes);
            let unreadable = |err: io::Error| {
                let message = format!("`{}` cannot be read", entry.path.display());
                PackError::File(Failure::new("SOURCE_UNREADABLE", message).with_cause(&err))
            };
            let file = File::open(root.join(&entry.path)).map_err(unreadable)?;
            let mut content = LimitedReader { file, left: *bytes, failed: None, advance };
            let appended = tar.append_data(&mut header, &entry.path, &mut content);
            match content.failed {
                Some(err) => Err(unreadable(err)),
                None => appended.map_err(|_| PackError::Disconnected),
            }
        }
    }
}

/// Reads a file up to the size in its header; keeps a read error, which `tar` would not distinguish
/// from a write error.
struct LimitedReader<'a> {
    file: File,
    left: u64,
    failed: Option<io::Error>,
    advance: &'a dyn Fn(u64),
}

impl Read for LimitedReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = match self.file.read(&mut buffer[..most]) {
            Ok(0) if self.left > 0 && most > 0 => {
                Err(io::Error::other("it shrank while it was read"))
            }
            other => other,
        };
        match read {
            Ok(n) => {
                self.left -= n as u64;
                (self.advance)(n as u64);
                Ok(n)
            }
            Err(err) if err.kind() == io::ErrorKind::Interrupted => Err(err),
            Err(err) => {
                let copy = io::Error::new(err.kind(), err.to_string());
                self.failed = Some(err);
                Err(copy)
            }
        }
    }
}

/// The writing end of the request's body.
struct Sender(mpsc::Sender<io::Result<Bytes>>);

impl Write for Sender {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(piece)));
        sent.map(|()| piece.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use epsilon_api::units::Bytes as Size;
    use std::{fs, os::unix::fs::symlink};

    fn packed(dir: &Path) -> Vec<u8> {
        let mut out = Vec::new();
        let tree = Tree::read(dir, Size::mib(1)).unwrap();
        pack(&tree, &mut out, &|_| {}).map_err(|_| ()).unwrap();
        out
    }

    fn project() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("src")).unwrap();
        for (path, text) in [("src/b.js", "b"), ("a.js", "a"), ("epsilon.yaml", "project: x")] {
            fs::write(dir.path().join(path), text).unwrap();
        }
        symlink("src/b.js", dir.path().join("link.js")).unwrap();
        dir
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes() {
        assert_eq!(packed(project().path()), packed(project().path()));
    }

    #[test]
    fn archive_is_sorted_without_times_or_owners() {
        let dir = project();
        fs::create_dir(dir.path().join("data")).unwrap();
        let bytes = packed(dir.path());
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..]));
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap()), (0, 0));
            let link = entry.link_name().unwrap().map(|link| link.display().to_string());
            seen.push((entry.path().unwrap().display().to_string(), link));
        }
        let file = |path: &str| (path.to_owned(), None);
        let link = ("link.js".to_owned(), Some("src/b.js".to_owned()));
        assert_eq!(
            seen,
            [file("a.js"), file("data/"), file("epsilon.yaml"), link, file("src/b.js")]
        );
    }

    #[test]
    fn a_file_that_shrinks_is_named() {
        let dir = project();
        let mut tree = Tree::read(dir.path(), Size::mib(1)).unwrap();
        tree.entries[0].kind = Kind::File { bytes: 99, executable: false };
        let Err(PackError::File(failure)) = pack(&tree, io::sink(), &|_| {}) else {
            panic!("it was packed")
        };
        let text = format!("{failure:?}");
        assert!(text.contains("`a.js` cannot be read: it shrank"), "{text}");
    }
}
