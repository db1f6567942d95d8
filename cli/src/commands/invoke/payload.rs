//! The body of `--data`: a text, a file or standard input. The first piece is read at once to
//! detect its type; a longer body is streamed.

use crate::failure::Failure;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use reqwest::Body;
use std::os::fd::AsFd as _;
use tokio::{fs::File, io::AsyncReadExt as _};
use tokio_util::io::ReaderStream;

/// A body up to this size is sent whole and with its length.
const WHOLE_MAX: u64 = 1 << 20;

/// A body, ready to be sent.
#[derive(Debug)]
pub(super) struct Payload {
    head: Bytes,
    rest: Option<File>,
}

impl Payload {
    /// Reads DATA, `@FILE` or `@-`.
    pub(super) async fn open(data: &str) -> Result<Self, Failure> {
        let Some(name) = data.strip_prefix('@') else {
            return Ok(Self { head: Bytes::copy_from_slice(data.as_bytes()), rest: None });
        };
        let unreadable = |err: std::io::Error| {
            let what = if name == "-" { "standard input".into() } else { format!("`{name}`") };
            Failure::usage(format!("{what} cannot be read")).with_cause(&err)
        };
        let mut source = if name == "-" {
            let stdin = std::io::stdin().as_fd().try_clone_to_owned().map_err(unreadable)?;
            File::from_std(stdin.into())
        } else {
            File::open(name).await.map_err(unreadable)?
        };
        let mut head = Vec::new();
        (&mut source).take(WHOLE_MAX).read_to_end(&mut head).await.map_err(unreadable)?;
        let rest = (head.len() as u64 == WHOLE_MAX).then_some(source);
        Ok(Self { head: head.into(), rest })
    }

    /// Detected content type: JSON, text or bytes.
    pub(super) fn content_type(&self) -> &'static str {
        if self.rest.is_some() {
            "application/octet-stream"
        } else if serde_json::from_slice::<serde::de::IgnoredAny>(&self.head).is_ok() {
            "application/json"
        } else if std::str::from_utf8(&self.head).is_ok() {
            "text/plain; charset=utf-8"
        } else {
            "application/octet-stream"
        }
    }

    pub(super) fn into_body(self) -> Body {
        match self.rest {
            None => self.head.into(),
            Some(rest) => {
                let head = stream::once(async { Ok(self.head) });
                Body::wrap_stream(head.chain(ReaderStream::new(rest)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Payload;

    #[tokio::test]
    async fn the_content_type_is_what_the_data_looks_like() {
        for (data, kind) in [
            (r#"{"a":1}"#, "application/json"),
            ("hello", "text/plain; charset=utf-8"),
            ("", "text/plain; charset=utf-8"),
        ] {
            assert_eq!(Payload::open(data).await.unwrap().content_type(), kind, "{data}");
        }
    }

    #[tokio::test]
    async fn a_long_file_is_streamed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big.json");
        std::fs::write(&path, vec![b'1'; 3 << 20]).unwrap();
        let payload = Payload::open(&format!("@{}", path.display())).await.unwrap();
        assert_eq!(payload.content_type(), "application/octet-stream");
        assert!(payload.into_body().as_bytes().is_none());
    }
}
