//! Splits the bytes of a container's output into lines and records. Pure. A wrapper's record is a
//! record separator (0x1e), one line of JSON, a line feed (RFC 7464); anything else is a raw line.
//! Every buffer is bounded.

use epsilon_api::{ids::RequestId, log::Level};
use jiff::Timestamp;
use serde::Deserialize;

const SEPARATOR: u8 = 0x1e;
/// The JSON of a record may be longer than its message by this factor, for escapes and the other
/// fields.
const RECORD_SLACK: usize = 8;
/// Marks a truncated text.
const CUT: &str = " …";

/// One line, without the instance it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// `None` for a raw line.
    pub(crate) time: Option<Timestamp>,
    pub(crate) level: Level,
    pub(crate) request_id: Option<RequestId>,
    pub(crate) message: String,
}

#[derive(Deserialize)]
struct Record {
    time: Timestamp,
    level: Level,
    #[serde(default)]
    request_id: Option<RequestId>,
    message: String,
}

/// Splits one stream into lines.
#[derive(Debug)]
pub(crate) struct Lines {
    raw_level: Level,
    limit: usize,
    buffer: Vec<u8>,
    is_cut: bool,
}

impl Lines {
    pub(crate) fn new(raw_level: Level, limit: usize) -> Self {
        Self { raw_level, limit, buffer: Vec::new(), is_cut: false }
    }

    /// Takes a piece; passes each line that it completes to `emit`.
    pub(crate) fn push(&mut self, piece: &[u8], mut emit: impl FnMut(Line)) {
        let mut rest = piece;
        while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\n' | &SEPARATOR)) {
            self.add(&rest[..at]);
            self.flush(&mut emit);
            if rest[at] == SEPARATOR {
                self.buffer.push(SEPARATOR);
            }
            rest = &rest[at + 1..];
        }
        self.add(rest);
    }

    /// The stream ended: passes what is left as a line.
    pub(crate) fn flush(&mut self, mut emit: impl FnMut(Line)) {
        if !self.buffer.is_empty() {
            emit(self.line());
            self.buffer.clear();
        }
        self.is_cut = false;
    }

    fn add(&mut self, bytes: &[u8]) {
        let is_record = self.buffer.first() == Some(&SEPARATOR);
        let limit = if is_record { self.limit * RECORD_SLACK } else { self.limit };
        let room = limit.saturating_sub(self.buffer.len());
        self.is_cut |= bytes.len() > room;
        self.buffer.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn line(&self) -> Line {
        let text = match self.buffer.strip_prefix(&[SEPARATOR]) {
            Some(json) => match serde_json::from_slice(json) {
                Ok(Record { time, level, request_id, message }) => {
                    let message = cut(message, self.limit);
                    return Line { time: Some(time), level, request_id, message };
                }
                Err(_) => json,
            },
            None => &self.buffer,
        };
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let mut message = cut(String::from_utf8_lossy(text).into_owned(), self.limit);
        if self.is_cut && !message.ends_with(CUT) {
            message.push_str(CUT);
        }
        Line { time: None, level: self.raw_level, request_id: None, message }
    }
}

fn cut(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit));
        text.push_str(CUT);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(pieces: &[&[u8]]) -> Vec<Line> {
        let mut parsed = Vec::new();
        let mut lines = Lines::new(Level::Info, 32);
        for piece in pieces {
            lines.push(piece, |line| parsed.push(line));
        }
        lines.flush(|line| parsed.push(line));
        parsed
    }

    fn raw(message: &str) -> Line {
        Line { time: None, level: Level::Info, request_id: None, message: message.into() }
    }

    #[test]
    fn raw_lines_in_any_pieces() {
        assert_eq!(lines(&[b"one\ntw", b"o\r\n\nthree"]), [raw("one"), raw("two"), raw("three")]);
    }

    #[test]
    fn a_record_carries_its_call() {
        let parsed = lines(&[
            b"half\x1e{\"time\":\"2026-01-01T00:00:00Z\",\"level\":\"warn\",",
            b"\"request_id\":\"abcd-1234\",\"message\":\"a\\nb\"}\nraw\n",
        ]);
        assert_eq!(parsed[0], raw("half"));
        assert_eq!(parsed[1].level, Level::Warn);
        assert_eq!(parsed[1].request_id.as_ref().map(RequestId::as_str), Some("abcd-1234"));
        assert_eq!(parsed[1].message, "a\nb");
        assert_eq!(parsed[2], raw("raw"));
    }

    #[test]
    fn a_broken_record_is_a_raw_line() {
        assert_eq!(lines(&[b"\x1e{nope\n"]), [raw("{nope")]);
    }

    #[test]
    fn long_line_is_cut_next_one_is_whole() {
        let parsed = lines(&[&[b'x'; 1000], b"\nnext\n"]);
        assert_eq!(parsed, [raw(&format!("{}{CUT}", "x".repeat(32))), raw("next")]);
    }

    proptest! {
        #[test]
        fn memory_is_bounded_whatever_comes(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..20)) {
            let mut lines = Lines::new(Level::Info, 32);
            for piece in &pieces {
                lines.push(piece, |line| assert!(line.message.len() <= 3 * 32 + CUT.len()));
                prop_assert!(lines.buffer.len() <= 32 * RECORD_SLACK);
            }
        }
    }
}
