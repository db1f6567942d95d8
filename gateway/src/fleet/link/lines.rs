//! An answer of one JSON value per line, read line by line as it arrives.

use super::PooledBody;
use super::error::LinkError;
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
    body: PooledBody,
    limit: usize,
) -> impl Stream<Item = Result<String, LinkError>> + Send + Unpin + 'static {
    let bytes = BodyDataStream::new(body).map_err(io::Error::other);
    let codec = LinesCodec::new_with_max_length(limit);
    let lines = FramedRead::new(StreamReader::new(bytes), codec);
    lines.map(|line| {
        line.map_err(|err| match err {
            LinesCodecError::Io(err) => LinkError::Disconnected(err.into()),
            LinesCodecError::MaxLineLengthExceeded => LinkError::Protocol(err.to_string()),
        })
    })
}

/// Parses a line.
pub(crate) fn parsed<T: DeserializeOwned>(line: &str) -> Result<T, LinkError> {
    serde_json::from_str(line).map_err(|err| LinkError::Protocol(err.to_string()))
}
