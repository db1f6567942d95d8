//! Interim answers of a server (1xx: early hints, processing) before its answer. hyper reads over them; its own way to be told
//! costs allocations for each request, so they are seen here, in the bytes that it is given, and told to who waits in
//! [`super::Connection::send_with`]. Only looks: what hyper reads stays as it came.
//!
//! 101 is an answer, not an interim one, and 100 is of one hop. A server that sends no end of them is cut off.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;
use std::{
    io,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::{Context, Waker},
};

/// Interim answers to one request; one more, and the connection is broken off.
const MOST: u32 = 32;
/// Longest head of one.
const LONGEST: usize = 16 << 10;

/// What begins one. A final answer begins otherwise, but for 101.
const BEGIN: &[u8] = b"HTTP/1.1 1";

/// What the reader of a connection tells its user.
#[derive(Debug, Default)]
pub(super) struct Interim {
    /// A request was sent, and nothing of its answer has come yet.
    is_due: AtomicBool,
    has_found: AtomicBool,
    found: Mutex<Vec<(StatusCode, HeaderMap)>>,
    /// Who waits for the answer, where another task reads.
    waiting: Mutex<Option<Waker>>,
}

/// The part of it that only the reader has.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The beginning of a head whose end has not come.
    part: Vec<u8>,
    count: u32,
}

impl Interim {
    /// A request is about to be sent.
    pub(super) fn expect(&self) {
        self.is_due.store(true, Relaxed);
    }

    /// Wakes the task that asks as soon as another one finds some; who reads itself sees it anyway.
    pub(super) fn watch(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting.lock();
        match &mut *waiting {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waiting = Some(cx.waker().clone()),
        }
    }

    /// What has come since.
    pub(super) fn take(&self) -> Vec<(StatusCode, HeaderMap)> {
        match self.has_found.swap(false, Relaxed) {
            true => std::mem::take(&mut *self.found.lock()),
            false => Vec::new(),
        }
    }

    /// Bytes that came.
    pub(super) fn read(&self, seen: &mut Seen, bytes: &[u8]) -> io::Result<()> {
        if !self.is_due.load(Relaxed) {
            return Ok(());
        }
        if seen.part.is_empty() && !is_begun(bytes) {
            self.is_due.store(false, Relaxed);
            *seen = Seen::default(); // the count is of one exchange
            return Ok(());
        }
        seen.part.extend_from_slice(bytes);
        let mut at = 0;
        while let rest = &seen.part[at..]
            && is_begun(rest)
            && let Some(size) = rest.windows(4).position(|four| four == b"\r\n\r\n")
        {
            seen.count += 1;
            if let Some(one) = parse(&rest[..size]) {
                self.found.lock().push(one);
                self.has_found.store(true, Relaxed);
                if let Some(waker) = self.waiting.lock().take() {
                    waker.wake();
                }
            }
            at += size + 4;
        }
        seen.part.drain(..at);
        if seen.count > MOST || (seen.part.len() > LONGEST && is_begun(&seen.part)) {
            return Err(io::Error::other("no end of interim (1xx) answers"));
        }
        if !seen.part.is_empty() && !is_begun(&seen.part) {
            self.is_due.store(false, Relaxed);
            *seen = Seen::default();
        }
        Ok(())
    }
}

/// Whether these bytes begin an interim answer, or may once there are more.
fn is_begun(bytes: &[u8]) -> bool {
    let size = bytes.len().min(BEGIN.len());
    bytes[..size] == BEGIN[..size] && !bytes.starts_with(b"HTTP/1.1 101")
}

/// A head without its empty line, if it is one to be passed on. hyper reads the same bytes and breaks off what is no HTTP.
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
        let (interim, mut seen) = (Interim::default(), Seen::default());
        interim.expect();
        let mut found = Vec::new();
        for piece in pieces {
            interim.read(&mut seen, piece)?;
            found.extend(interim.take().iter().map(|(status, _)| status.as_u16()));
        }
        Ok(found)
    }

    #[test]
    fn interim_answers_are_seen_before_an_answer_and_nowhere_else() {
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
        let long = format!("HTTP/1.1 103 x\r\nlink: {}", "y".repeat(LONGEST));
        assert!(statuses(&[long.as_bytes()]).is_err());
    }

    #[test]
    fn headers_come_along() {
        let (interim, mut seen) = (Interim::default(), Seen::default());
        interim.expect();
        interim.read(&mut seen, HINTS.as_bytes()).unwrap();
        assert_eq!(interim.take()[0].1["link"], "</s.css>");
    }

    #[test]
    fn the_bound_is_of_one_exchange() {
        let (interim, mut seen) = (Interim::default(), Seen::default());
        for _ in 0..3 * MOST {
            interim.expect();
            interim.read(&mut seen, HINTS.as_bytes()).unwrap();
            interim.read(&mut seen, b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            assert_eq!(interim.take().len(), 1);
        }
    }
}
