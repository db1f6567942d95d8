//! A writer that computes digest and size of what passes through it. Layers are written through it,
//! uncompressed (`image/tree.rs`) and compressed (`publish/registry.rs`), so that no file is read
//! again for its digest.

use crate::source::{ContentDigest, Hasher};
use std::io::{self, Write};

pub(crate) struct Hashing<W> {
    to: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W> Hashing<W> {
    pub(crate) fn new(to: W) -> Self {
        Self { to, hasher: Hasher::default(), bytes: 0 }
    }

    /// The inner writer, the digest and the size.
    pub(crate) fn finish(self) -> (W, ContentDigest, u64) {
        (self.to, self.hasher.finish(), self.bytes)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.to.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
