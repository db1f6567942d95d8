//! Extracts a byte stream into a directory that is complete and verified. The stream is read here
//! and the files are written in a blocking task, with a short queue between them: a slow disk slows
//! the sender, and nothing is buffered twice.

use super::name::Name;
use super::store::{Draft, LayerStore};
use super::unpack;
use super::unpack::UnpackError;
use bytes::{Buf, Bytes};
use flate2::bufread::MultiGzDecoder;
use futures_util::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use std::{
    error::Error,
    fmt::Write,
    io::{self, BufRead, Read},
    pin::pin,
    sync::Arc,
};
use tokio::{
    sync::mpsc,
    task::{JoinError, spawn_blocking},
};

/// Length of the queue; a piece is some ten kilobytes.
const QUEUE_DEPTH: usize = 16;

/// Compression of the tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Plain,
    Gzip,
}

/// What is expected of a tar.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) name: Name,
    /// Whether the name is the digest of the tar; if not, any tar will do.
    pub(super) is_digest: bool,
    /// Limit of its size on disk, in bytes.
    pub(super) most: u64,
}

/// An unpacked layer, and its size on disk.
pub(super) type Unpacked = (Draft, u64);

/// Why an extraction failed.
#[derive(Debug)]
pub(super) enum ExtractError {
    /// The sender failed.
    Source(Box<dyn Error + Send + Sync>),
    /// The content that was sent.
    Content(UnpackError),
}

impl From<JoinError> for ExtractError {
    fn from(err: JoinError) -> Self {
        Self::Content(UnpackError::Disk(io::Error::other(err)))
    }
}

/// Unpacks a stream. When the future is dropped, what was written is removed.
///
/// `most`: limit of the bytes in the stream.
pub(super) async fn from_stream<E: Into<Box<dyn Error + Send + Sync>>>(
    store: &Arc<LayerStore>,
    expected: Expected,
    compression: Compression,
    most: Option<u64>,
    stream: impl Stream<Item = Result<Bytes, E>>,
) -> Result<Unpacked, ExtractError> {
    let (to, pieces) = mpsc::channel(QUEUE_DEPTH);
    let store = Arc::clone(store);
    let work = spawn_blocking(move || {
        let pipe = Pipe { pieces, now: Bytes::new() };
        match compression {
            Compression::Plain => from_reader(&store, &expected, pipe),
            Compression::Gzip => from_reader(&store, &expected, MultiGzDecoder::new(pipe)),
        }
    });
    let feed = async move {
        let mut stream = pin!(stream);
        let mut sent = 0;
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|err| ExtractError::Source(err.into()))?;
            sent += piece.len() as u64;
            if most.is_some_and(|most| sent > most) {
                let what = io::Error::other("more bytes than its descriptor says");
                return Err(ExtractError::Content(UnpackError::Corrupt(what)));
            }
            if to.send(piece).await.is_err() {
                break; // the reader stopped, and returns why
            }
        }
        Ok(())
    };
    let (fed, done) = tokio::join!(feed, work);
    // An error of the sender explains a truncated tar.
    fed?;
    done?.map_err(ExtractError::Content)
}

/// Unpacks what a reader provides. Blocking.
pub(super) fn from_reader(
    store: &LayerStore,
    expected: &Expected,
    from: impl Read,
) -> Result<Unpacked, UnpackError> {
    let mut from = Digesting { from, sha: Sha256::new() };
    let draft = store.draft().map_err(UnpackError::Disk)?;
    let done = unpack::unpack(&mut from, &draft.app(), expected.most);
    if let Err(UnpackError::Unfit(why)) = &done {
        // Reported only if the tar really is this layer.
        let rest = io::copy(&mut (&mut from).take(expected.most), &mut io::sink());
        if rest.is_ok_and(|rest| rest == expected.most) {
            return Err(UnpackError::Unfit(why.clone()));
        }
    }
    if !matches!(done, Err(UnpackError::Disk(_))) {
        from.check(expected)?;
    }
    Ok((draft, done?))
}

/// Computes the digest of what is read through it.
struct Digesting<R> {
    from: R,
    sha: Sha256,
}

impl<R> Digesting<R> {
    fn check(self, expected: &Expected) -> Result<(), UnpackError> {
        let found = self.sha.finalize().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        if !expected.is_digest || found == expected.name.hex() {
            return Ok(());
        }
        let what = format!("the tar's digest is sha256:{found}");
        Err(UnpackError::Corrupt(io::Error::other(what)))
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.sha.update(&buffer[..n]);
        Ok(n)
    }
}

/// The blocking end of the queue.
struct Pipe {
    pieces: mpsc::Receiver<Bytes>,
    now: Bytes,
}

impl BufRead for Pipe {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.now.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.now = piece,
                None => break,
            }
        }
        Ok(&self.now)
    }

    fn consume(&mut self, n: usize) {
        self.now.advance(n);
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.len().min(buffer.len());
        buffer[..n].copy_from_slice(&self.now[..n]);
        self.consume(n);
        Ok(n)
    }
}
