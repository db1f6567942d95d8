//! Interim answers of a server (1xx: early hints, processing) before its final answer. hyper skips
//! them, and its own callback costs allocations for each request, so they are parsed here from the
//! bytes that hyper is given, and reported to the caller of [`super::Connection::send_with`]. This
//! only looks: the bytes reach hyper unchanged.
//!
//! 101 is a final answer, and 100 concerns one hop only. A server that sends too many is cut off.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;
use std::{
    io,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::{Context, Waker},
};

/// Interim answers to one request at most; one more breaks the connection off.
const MAX_INTERIM: u32 = 32;
/// Longest head of an interim answer in bytes.
const MAX_HEAD: usize = 16 << 10;

/// How an interim answer begins. A final answer begins differently, except for 101.
const BEGIN: &[u8] = b"HTTP/1.1 1";

/// What the reader of a connection shares with the task that waits for the answer.
#[derive(Debug, Default)]
pub(super) struct Interim {
    /// A request was sent, and no byte of its final answer has arrived yet.
    is_expected: AtomicBool,
    has_found: AtomicBool,
    found: Mutex<Vec<(StatusCode, HeaderMap)>>,
    /// The task that waits for the answer, when another task reads.
    waiting: Mutex<Option<Waker>>,
}

/// Parser state, owned by the reader alone.
#[derive(Debug, Default)]
pub(super) struct InterimParser {
    /// The beginning of a head whose end has not arrived.
    part: Vec<u8>,
    count: u32,
}

impl Interim {
    /// A request is about to be sent.
    pub(super) fn expect(&self) {
        self.is_expected.store(true, Relaxed);
    }

    /// Wakes this task as soon as another task finds interim answers; a task that reads itself sees
    /// them anyway.
    pub(super) fn watch(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting.lock();
        match &mut *waiting {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waiting = Some(cx.waker().clone()),
        }
    }

    /// Interim answers since the last `take`.
    pub(super) fn take(&self) -> Vec<(StatusCode, HeaderMap)> {
        if self.has_found.swap(false, Relaxed) {
            std::mem::take(&mut *self.found.lock())
        } else {
            Vec::new()
        }
    }

    /// Parses bytes that arrived.
    pub(super) fn read(&self, parser: &mut InterimParser, bytes: &[u8]) -> io::Result<()> {
        if !self.is_expected.load(Relaxed) {
            return Ok(());
        }
        if parser.part.is_empty() && !is_begun(bytes) {
            self.is_expected.store(false, Relaxed);
            *parser = InterimParser::default(); // the count is per exchange
            return Ok(());
        }
        parser.part.extend_from_slice(bytes);
        let mut at = 0;
        while let rest = &parser.part[at..]
            && is_begun(rest)
            && let Some(size) = rest.windows(4).position(|four| four == b"\r\n\r\n")
        {
            parser.count += 1;
            if let Some(one) = parse(&rest[..size]) {
                self.found.lock().push(one);
                self.has_found.store(true, Relaxed);
                if let Some(waker) = self.waiting.lock().take() {
                    waker.wake();
                }
            }
            at += size + 4;
        }
        parser.part.drain(..at);
        if parser.count > MAX_INTERIM || (parser.part.len() > MAX_HEAD && is_begun(&parser.part)) {
            return Err(io::Error::other("too many interim (1xx) answers"));
        }
        if !parser.part.is_empty() && !is_begun(&parser.part) {
            self.is_expected.store(false, Relaxed);
            *parser = InterimParser::default();
        }
        Ok(())
    }
}

/// Whether these bytes begin an interim answer, or may once more bytes arrive.
fn is_begun(bytes: &[u8]) -> bool {
    let size = bytes.len().min(BEGIN.len());
    bytes[..size] == BEGIN[..size] && !bytes.starts_with(b"HTTP/1.1 101")
}

/// Parses a head without its empty line; `None` for one that is not passed on. hyper reads the same
/// bytes and breaks off what is not HTTP.
fn parse(head: &[u8]) -> Option<(StatusCode, HeaderMap)> {
    let mut lines = head.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
    let status = StatusCode::from_bytes(lines.next()?.get(9..12)?).ok()?;
    let mut headers = HeaderMap::new();
    for line in lines {
        let colon = line.iter().position(|b| *b == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        headers.append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
    }
    (status != StatusCode::CONTINUE).then_some((status, headers))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </s.css>\r\n\r\n";
    const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    fn statuses(pieces: &[&[u8]]) -> Result<Vec<u16>, io::Error> {
        let (interim, mut parser) = (Interim::default(), InterimParser::default());
        interim.expect();
        let mut found = Vec::new();
        for piece in pieces {
            interim.read(&mut parser, piece)?;
            found.extend(interim.take().iter().map(|(status, _)| status.as_u16()));
        }
        Ok(found)
    }

    #[test]
    fn interim_answers_are_seen_only_before_an_answer() {
        let again = format!("{HINTS}HTTP/1.1 102 Processing\r\n\r\n{ANSWER}{HINTS}");
        for (text, want) in [
            (ANSWER, &[][..]),
            (&again, &[103, 102]),
            ("HTTP/1.1 100 Continue\r\n\r\n", &[]),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 103 x\r\n\r\n", &[]),
            ("HTTP/1.1 103 x\r\nbroken\r\n\r\n", &[]),
            ("HTTP/1.0 103 x\r\n\r\n", &[]),
        ] {
            assert_eq!(statuses(&[text.as_bytes()]).unwrap(), want, "{text}");
            let one_by_one: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(statuses(&one_by_one).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn no_end_of_them_is_an_error() {
        assert_eq!(statuses(&[HINTS.repeat(32).as_bytes()]).unwrap().len(), 32);
        assert!(statuses(&[HINTS.repeat(33).as_bytes()]).is_err());
        let long = format!("HTTP/1.1 103 x\r\nlink: {}", "y".repeat(MAX_HEAD));
        assert!(statuses(&[long.as_bytes()]).is_err());
    }

    #[test]
    fn headers_come_along() {
        let (interim, mut parser) = (Interim::default(), InterimParser::default());
        interim.expect();
        interim.read(&mut parser, HINTS.as_bytes()).unwrap();
        assert_eq!(interim.take()[0].1["link"], "</s.css>");
    }

    #[test]
    fn the_bound_is_of_one_exchange() {
        let (interim, mut parser) = (Interim::default(), InterimParser::default());
        for _ in 0..3 * MAX_INTERIM {
            interim.expect();
            interim.read(&mut parser, HINTS.as_bytes()).unwrap();
            interim.read(&mut parser, b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            assert_eq!(interim.take().len(), 1);
        }
    }
}
