//! A streamed answer of JSON values, one per line: the progress of a deployment, a log.

use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use serde::de::DeserializeOwned;
use std::{error::Error, fmt, io, pin::Pin};
use tokio_util::{
    codec::{FramedRead, LinesCodec, LinesCodecError},
    io::StreamReader,
};

/// Longest line in bytes: a log record has some KiB, a deployment's result some KiB per function.
const LINE_MAX: usize = 4 << 20;

type Lines = dyn Stream<Item = Result<String, LinesCodecError>> + Send;

/// The rest of an answer, read line by line.
pub(crate) struct JsonLines(Pin<Box<Lines>>);

impl fmt::Debug for JsonLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JsonLines")
    }
}

/// Why reading the next line failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    /// A line that this program does not understand.
    #[error("a line is not one of a gateway of this version")]
    Foreign(#[source] Box<dyn Error + Send + Sync>),
}

impl JsonLines {
    pub(crate) fn new(response: reqwest::Response) -> Self {
        let bytes = response.bytes_stream().map_err(|err| io::Error::other(err.without_url()));
        let codec = LinesCodec::new_with_max_length(LINE_MAX);
        Self(Box::pin(FramedRead::new(StreamReader::new(bytes), codec)))
    }

    /// The next line, or `None` at the end. Cancel-safe.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LineError> {
        loop {
            match self.0.next().await {
                None => return Ok(None),
                Some(Ok(line)) if line.trim().is_empty() => {} // keeps a silent connection alive
                Some(Ok(line)) => {
                    let value = serde_json::from_str(&line);
                    return value.map(Some).map_err(|err| LineError::Foreign(Box::new(err)));
                }
                Some(Err(LinesCodecError::Io(err))) => return Err(LineError::Broken(err)),
                Some(Err(err @ LinesCodecError::MaxLineLengthExceeded)) => {
                    return Err(LineError::Foreign(Box::new(err)));
                }
            }
        }
    }
}
