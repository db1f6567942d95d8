//! Streaming gzip: compresses a stream, or decompresses one that a client sent. Holds some tens of
//! KiB, regardless of the size.

use bytes::Bytes;
use epsilon_api::body::BodyError;
use flate2::{
    Compression,
    write::{GzDecoder, GzEncoder},
};
use futures_util::{Stream, TryStreamExt, stream};
use std::io::{self, Write};

/// Bytes that are decompressed at a time: they may expand a thousandfold.
const STEP: usize = 1 << 10;

/// Favours speed over size: the data goes to a builder, at most over a data centre's network.
pub(crate) fn pack(
    plain: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static {
    let state = Some((Box::pin(plain), GzEncoder::new(Vec::new(), Compression::fast())));
    stream::try_unfold(state, async |state| {
        let Some((mut plain, mut packer)) = state else { return Ok(None) };
        loop {
            match plain.try_next().await? {
                Some(piece) => packer.write_all(&piece)?,
                None => return Ok(Some((packer.finish()?.into(), None))),
            }
            if !packer.get_ref().is_empty() {
                let packed = std::mem::take(packer.get_mut());
                return Ok(Some((packed.into(), Some((plain, packer)))));
            }
        }
    })
}

/// Decompresses what git clients send.
#[derive(Debug)]
pub(crate) struct Unpacker(GzDecoder<Vec<u8>>);

impl Unpacker {
    pub(crate) fn new() -> Self {
        Self(GzDecoder::new(Vec::new()))
    }

    /// Splits a piece into parts that are decompressed one after another, so that none of them
    /// becomes large. An uncompressed piece stays whole.
    pub(crate) fn steps(piece: &Bytes, is_packed: bool) -> impl Iterator<Item = Bytes> {
        let step = if is_packed { STEP } else { piece.len().max(1) };
        (0..piece.len()).step_by(step).map(move |at| piece.slice(at..piece.len().min(at + step)))
    }

    /// The output for this part.
    pub(crate) fn step(&mut self, step: &[u8]) -> io::Result<Bytes> {
        self.0.write_all(step)?;
        Ok(std::mem::take(self.0.get_mut()).into())
    }

    /// The rest of the output; an error if the stream is incomplete.
    pub(crate) fn end(mut self) -> io::Result<Bytes> {
        self.0.try_finish()?;
        Ok(std::mem::take(self.0.get_mut()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn packed(plain: &[u8]) -> Bytes {
        let pieces: Vec<_> =
            plain.chunks(7000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let packed: Vec<Bytes> = pack(stream::iter(pieces)).try_collect().await.unwrap();
        packed.concat().into()
    }

    #[tokio::test]
    async fn what_was_packed_comes_out_again() {
        for plain in
            [vec![], b"a".to_vec(), vec![7; 1 << 20], (0..=255).cycle().take(99_999).collect()]
        {
            let packed = packed(&plain).await;
            let mut unpacker = Unpacker::new();
            let mut out = Vec::new();
            for step in Unpacker::steps(&packed, true) {
                let part = unpacker.step(&step).unwrap();
                assert!(part.len() <= 2 << 20, "a part expands to little");
                out.extend(part);
            }
            out.extend(unpacker.end().unwrap());
            assert_eq!(out, plain);
        }
    }

    #[tokio::test]
    async fn truncated_or_invalid_gzip_is_an_error() {
        let packed = packed(&[9; 5000]).await;
        let mut unpacker = Unpacker::new();
        unpacker.step(&packed[..packed.len() / 2]).unwrap();
        assert!(unpacker.end().is_err());
        let mut unpacker = Unpacker::new();
        assert!(unpacker.step(b"0000not gzip at all").and_then(|_| unpacker.end()).is_err());
    }
}
