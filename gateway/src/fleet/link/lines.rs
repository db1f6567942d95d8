//! An answer of one JSON value per line, read line by line as it arrives.

use super::Kept;
use super::error::Trouble;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http_body_util::BodyDataStream;
use serde::de::DeserializeOwned;
use std::io;
use tokio_util::{
    codec::{FramedRead, LinesCodec, LinesCodecError},
    io::StreamReader,
};

/// The lines; none may be longer than `limit` bytes.
pub(crate) fn lines(
    body: Kept,
    limit: usize,
) -> impl Stream<Item = Result<String, Trouble>> + Send + Unpin + 'static {
    let bytes = BodyDataStream::new(body).map_err(io::Error::other);
    let codec = LinesCodec::new_with_max_length(limit);
    let lines = FramedRead::new(StreamReader::new(bytes), codec);
    lines.map(|line| {
        line.map_err(|err| match err {
            LinesCodecError::Io(err) => Trouble::Broke(err.into()),
            LinesCodecError::MaxLineLengthExceeded => Trouble::Odd(err.to_string()),
        })
    })
}

/// Parses a line.
pub(crate) fn parsed<T: DeserializeOwned>(line: &str) -> Result<T, Trouble> {
    serde_json::from_str(line).map_err(|err| Trouble::Odd(err.to_string()))
}
