//! Writes the answer to bytes that are not a valid request, then closes the connection. What it
//! says is the handler's ([`crate::Handler::refuse`]); hyper's own answers would have no body (see
//! [`crate::transport`]).

use crate::socket::{Socket, Watched};
use bytes::Bytes;
use epsilon_api::chain::Chain;
use http::Response;
use jiff::{Timestamp, fmt::rfc2822};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// Longest time to write the answer and discard the input after it.
const LIMIT: Duration = Duration::from_secs(1);
/// Input that is read and discarded after the answer, so that the caller reads the answer instead
/// of a connection reset.
const MAX_DISCARDED: usize = 256 << 10;

/// Writes the answer and closes the connection.
pub(crate) async fn answer<S: Socket>(mut socket: Watched<S>, answer: &Response<Bytes>) {
    let outcome = timeout(LIMIT, write(&mut socket, answer)).await;
    if let Ok(Err(error)) = outcome {
        tracing::debug!(error = %Chain(&error), "Error answer could not be written.");
    }
}

async fn write<S: Socket>(socket: &mut Watched<S>, answer: &Response<Bytes>) -> io::Result<()> {
    socket.write_all(&bytes_of(answer, Timestamp::now())).await?;
    socket.shutdown().await?;
    let mut unread = 0;
    let mut buffer = [0; 4096];
    while unread < MAX_DISCARDED {
        match socket.read(&mut buffer).await? {
            0 => break,
            size => unread += size,
        }
    }
    Ok(())
}

fn bytes_of(answer: &Response<Bytes>, now: Timestamp) -> Vec<u8> {
    let (status, body) = (answer.status(), answer.body());
    let reason = status.canonical_reason().unwrap_or_default();
    let mut out = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    for (name, value) in answer.headers() {
        for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(piece);
        }
    }
    if let Ok(date) = rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&now) {
        out.extend_from_slice(format!("date: {date}\r\n").as_bytes());
    }
    let end = format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    out.extend_from_slice(end.as_bytes());
    out.extend_from_slice(body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_whole_answer() {
        let answer = Response::builder().status(414).header("x-epsilon-request-id", "my-call-0001");
        let answer = answer.body(Bytes::from_static(b"{}")).unwrap();
        let text = String::from_utf8(bytes_of(&answer, Timestamp::UNIX_EPOCH)).unwrap();
        let head = "HTTP/1.1 414 URI Too Long\r\nx-epsilon-request-id: my-call-0001\r\n\
                    date: Thu, 01 Jan 1970 00:00:00 GMT\r\ncontent-length: 2\r\nconnection: close\r\n";
        assert_eq!(text, format!("{head}\r\n{{}}"));
    }
}
