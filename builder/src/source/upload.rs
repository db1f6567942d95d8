//! Passes the archive from the network (async) to the unpacking (blocking): a bounded channel
//! between a feeding future and a [`Read`].
//!
//! The end of the archive is a message of its own. A channel that closes without it means that the
//! upload was cut or that the build was cancelled; the reader then fails and the unpacking ends.

use crate::error::{self, Hint};
use bytes::Bytes;
use epsilon_api::{
    body::{BodyTooLarge, CallBody},
    build::BuildError,
};
use http_body_util::BodyExt;
use std::io::{self, Read};
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    time,
};

use super::SourceLimits;

/// Pieces queued for the unpacking. A piece from hyper has at most about 400 KiB, so this bounds
/// the memory of an upload to a few MiB without a hand-over for each piece.
const PIECES: usize = 8;

/// A message of the channel.
#[derive(Debug)]
pub(super) enum Piece {
    /// Bytes of the archive.
    Data(Bytes),
    /// The archive is complete.
    End,
}

/// The two ends of an upload.
pub(super) fn channel() -> (Sender<Piece>, Upload) {
    let (pieces, receiver) = mpsc::channel(PIECES);
    (pieces, Upload { receiver, rest: Bytes::new(), received: 0, ended: false })
}

/// Moves the body into the channel until its end. When the reader is gone, its own error explains
/// why, and this returns without one.
pub(super) async fn feed(
    mut body: CallBody,
    pieces: Sender<Piece>,
    limits: &SourceLimits,
) -> Result<(), BuildError> {
    let mut received = 0u64;
    loop {
        let frame = time::timeout(limits.stall, body.frame()).await.map_err(|_| {
            error::source_incomplete(format!("the upload stalled for {:?}", limits.stall))
        })?;
        let piece = match frame {
            None => Piece::End,
            Some(Err(cause)) => return Err(broken_off(cause.as_ref())),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => Piece::Data(data),
                Err(_trailers) => continue,
            },
        };
        let ended = match &piece {
            Piece::Data(data) => {
                received += data.len() as u64;
                false
            }
            Piece::End => true,
        };
        if received > limits.compressed.get() {
            return Err(too_large(&limits.compressed));
        }
        if pieces.send(piece).await.is_err() || ended {
            return Ok(());
        }
    }
}

fn too_large(limit: &dyn std::fmt::Display) -> BuildError {
    error::source_too_large(format!("the archive is larger than {limit}"))
        .hint("leave out what is not source; list it in `.epsilonignore`")
}

fn broken_off(cause: &(dyn std::error::Error + Send + Sync + 'static)) -> BuildError {
    match error::find(cause, |_: &BodyTooLarge| true) {
        Some(BodyTooLarge { limit }) => too_large(limit),
        None => error::source_incomplete("the upload was cut before the archive's end"),
    }
}

/// The blocking end.
#[derive(Debug)]
pub(super) struct Upload {
    receiver: Receiver<Piece>,
    rest: Bytes,
    received: u64,
    ended: bool,
}

impl Upload {
    /// Whether it ended without a byte.
    pub(super) fn is_empty(&self) -> bool {
        self.ended && self.received == 0
    }

    /// Bytes read so far.
    pub(super) fn received(&self) -> u64 {
        self.received
    }
}

impl Read for Upload {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Data(data)) => self.rest = data,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::other(broken_off(&io::Error::other("closed")))),
            }
        }
        let count = self.rest.len().min(buffer.len());
        let piece = self.rest.split_to(count);
        buffer[..count].copy_from_slice(&piece);
        self.received += count as u64;
        Ok(count)
    }
}
