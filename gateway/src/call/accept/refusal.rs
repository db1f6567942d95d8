//! The answer to bytes that are not a valid request: an error of the platform as for any call, then
//! the connection is closed. hyper's own answers would have no body; see [`super::transport`].

use super::{activity::Watched, transport::Socket};
use epsilon_api::{error::CallError, headers::REQUEST_ID, ids::RequestId};
use http::StatusCode;
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

/// The error for a status of hyper's parser.
pub(super) fn error(status: StatusCode) -> CallError {
    match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => CallError::HeadTooLarge,
        StatusCode::URI_TOO_LONG => CallError::TargetTooLong,
        StatusCode::REQUEST_TIMEOUT => CallError::HeadTooSlow,
        _ => CallError::BadRequest("the bytes received are not an HTTP/1.1 request"),
    }
}

/// Writes the error and closes the connection.
pub(super) async fn answer<S: Socket>(mut socket: Watched<S>, err: &CallError, id: &RequestId) {
    let outcome = timeout(LIMIT, write_error(&mut socket, err, id)).await;
    if let Ok(Err(error)) = outcome {
        tracing::debug!(%error, "Error answer could not be written.");
    }
}

async fn write_error<S: Socket>(
    socket: &mut Watched<S>,
    err: &CallError,
    id: &RequestId,
) -> io::Result<()> {
    socket.write_all(text(err, id, Timestamp::now()).as_bytes()).await?;
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

fn text(err: &CallError, id: &RequestId, now: Timestamp) -> String {
    let status = err.verdict().status;
    let body = err.body(id).to_json();
    let reason = status.canonical_reason().unwrap_or_default();
    let date = rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&now)
        .map_or_else(|_| String::new(), |date| format!("date: {date}\r\n"));
    format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
         {REQUEST_ID}: {id}\r\nserver-timing: total;dur=0.000\r\n{date}content-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        status.as_str(),
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_whole_answer() {
        let id = RequestId::parse("my-call-0001").unwrap();
        let text = text(&error(StatusCode::URI_TOO_LONG), &id, Timestamp::UNIX_EPOCH);
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 414 URI Too Long\r\n"), "{head}");
        for line in [
            "date: Thu, 01 Jan 1970 00:00:00 GMT",
            "x-epsilon-request-id: my-call-0001",
            "connection: close",
            &format!("content-length: {}", body.len()),
        ] {
            assert!(head.split("\r\n").any(|one| one == line), "{line} in {head}");
        }
        assert!(body.contains(r#""code":"TARGET_TOO_LONG""#), "{body}");
        assert!(body.contains(r#""request_id":"my-call-0001""#), "{body}");
    }
}
