//! Bytes as they arrive, to a folder that is whole and checked. The bytes are looked after here and the files in a
//! blocking task, with a short queue between them: a slow disk slows the sender, and nothing is held twice.

use super::{
    name::Name,
    stock::{Draft, Stock},
    unpack::{self, Trouble},
};
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

/// Pieces on the way to the disk; a piece is some ten kilobytes.
const ON_THE_WAY: usize = 16;

/// How the tar is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
}

/// What is to come of it.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) name: Name,
    /// Whether the name is the digest of the tar; if not, any tar will do.
    pub(super) is_digest: bool,
    /// Most that it may take on the disk.
    pub(super) most: u64,
}

/// A layer that was unpacked, and what it takes.
pub(super) type Unpacked = (Draft, u64);

/// Why nothing came of it.
#[derive(Debug)]
pub(super) enum Spilled {
    /// The sender failed.
    Sender(Box<dyn Error + Send + Sync>),
    /// What was sent.
    Sent(Trouble),
}

impl From<JoinError> for Spilled {
    fn from(err: JoinError) -> Self {
        Self::Sent(Trouble::Disk(io::Error::other(err)))
    }
}

/// Unpacks what a stream brings. When the future is dropped, what was written goes.
///
/// `most`: bytes that may be sent.
pub(super) async fn from_stream<E: Into<Box<dyn Error + Send + Sync>>>(
    stock: &Arc<Stock>,
    wanted: Wanted,
    packing: Packing,
    most: Option<u64>,
    stream: impl Stream<Item = Result<Bytes, E>>,
) -> Result<Unpacked, Spilled> {
    let (to, pieces) = mpsc::channel(ON_THE_WAY);
    let stock = Arc::clone(stock);
    let work = spawn_blocking(move || {
        let pipe = Pipe { pieces, now: Bytes::new() };
        match packing {
            Packing::Plain => from_reader(&stock, &wanted, pipe),
            Packing::Gzip => from_reader(&stock, &wanted, MultiGzDecoder::new(pipe)),
        }
    });
    let feed = async move {
        let mut stream = pin!(stream);
        let mut sent = 0;
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|err| Spilled::Sender(err.into()))?;
            sent += piece.len() as u64;
            if most.is_some_and(|most| sent > most) {
                let what = io::Error::other("more bytes than were told");
                return Err(Spilled::Sent(Trouble::Corrupt(what)));
            }
            if to.send(piece).await.is_err() {
                break; // it has seen enough, and says why
            }
        }
        Ok(())
    };
    let (fed, done) = tokio::join!(feed, work);
    // A sender that failed is the reason for a tar without an end.
    fed?;
    done?.map_err(Spilled::Sent)
}

/// Unpacks what a reader gives. Blocking.
pub(super) fn from_reader(
    stock: &Stock,
    wanted: &Wanted,
    from: impl Read,
) -> Result<Unpacked, Trouble> {
    let mut from = Digesting { from, sha: Sha256::new() };
    let draft = stock.draft().map_err(Trouble::Disk)?;
    let done = unpack::unpack(&mut from, &draft.app(), wanted.most);
    if let Err(Trouble::Unfit(why)) = &done {
        // Said of this layer only if it is this layer.
        let rest = io::copy(&mut (&mut from).take(wanted.most), &mut io::sink());
        if rest.is_ok_and(|rest| rest == wanted.most) {
            return Err(Trouble::Unfit(why.clone()));
        }
    }
    if !matches!(done, Err(Trouble::Disk(_))) {
        from.check(wanted)?;
    }
    Ok((draft, done?))
}

/// Digests what passes.
struct Digesting<R> {
    from: R,
    sha: Sha256,
}

impl<R> Digesting<R> {
    fn check(self, wanted: &Wanted) -> Result<(), Trouble> {
        let found = self.sha.finalize().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        if !wanted.is_digest || found == wanted.name.hex() {
            return Ok(());
        }
        let what = format!("the tar's digest is sha256:{found}");
        Err(Trouble::Corrupt(io::Error::other(what)))
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
