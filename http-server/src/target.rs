//! Request targets that `http::Uri` cannot hold: `"`, `<`, `>`, `` ` `` and non-ASCII bytes, which
//! browsers escape but Node, nginx and `curl` send as they are. hyper would refuse them. So while
//! the first line of a head is read, each such byte is replaced by a placeholder of the same
//! length, and restored before the call begins. No length changes, so request smuggling is not
//! possible: hyper alone decides where a message begins.
//!
//! The platform continues with the target as a browser would write it (`%3C`) and passes the
//! original to the function beside it ([`epsilon_api::headers::RawTarget`]). Where the start of a
//! head is not certain (pipelined requests, or after a chunked upload), nothing is replaced and
//! hyper refuses the target, as it would without this file.

use epsilon_api::headers::RawTarget;
use http::{HeaderValue, Request, Uri, uri::PathAndQuery};

/// The placeholder byte.
const PLACEHOLDER: u8 = b'_';

/// One replaced byte: its offset in the target, and its original value.
pub(crate) type Replaced = (usize, u8);

/// Most bytes that are replaced in one target: real targets have a few, and each takes memory until
/// its head is complete.
const MAX_REPLACED: usize = 2048;
/// Longest target that hyper accepts.
const MAX_TARGET: usize = u16::MAX as usize;

fn needs_escape(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'`') || byte >= 0x80
}

/// Scans the first line of each head as it is received, in any number of pieces.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    phase: Phase,
    /// Length of the target so far.
    size: usize,
    /// Number of bytes replaced.
    replaced_count: usize,
    /// Bytes received after the end of the head, for a method with a body whose head came in one
    /// piece.
    after_head: Option<u64>,
    /// The start of the next head is no longer known.
    is_out_of_sync: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Start,
    Method,
    Target,
    Over,
}

/// What is known of the previous request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upload {
    None,
    Sized(u64),
    Unknown,
}

impl Scan {
    /// The previous exchange is over: the next byte may begin a head.
    pub(crate) fn next_head(&mut self, upload: Upload) {
        let is_out_of_sync = match upload {
            Upload::None => false,
            Upload::Sized(size) => self.after_head != Some(size),
            Upload::Unknown => true,
        };
        *self = Self { is_out_of_sync: self.is_out_of_sync || is_out_of_sync, ..Self::default() };
    }

    /// Counts bytes that were received while a request was read or answered.
    pub(crate) fn body(&mut self, size: usize) {
        if let Some(after) = &mut self.after_head {
            *after += size as u64;
        }
    }

    /// Scans bytes of a head: replaces what hyper would refuse and returns what was replaced.
    pub(crate) fn head(&mut self, bytes: &mut [u8]) -> Vec<Replaced> {
        let mut replaced = Vec::new();
        if self.is_out_of_sync || self.phase == Phase::Over {
            self.body(bytes.len());
            return replaced;
        }
        let is_start = self.phase == Phase::Start;
        let mut at = 0;
        while let (Some(byte), true) = (bytes.get_mut(at), self.phase != Phase::Over) {
            self.step(byte, &mut replaced);
            at += 1;
        }
        let begins_with = bytes.iter().find(|b| !matches!(b, b'\r' | b'\n'));
        if is_start && begins_with == Some(&b'P') {
            // POST, PUT, PATCH.
            self.after_head = end_of_head(bytes).map(|end| (bytes.len() - end) as u64);
        }
        replaced
    }

    fn step(&mut self, byte: &mut u8, replaced: &mut Vec<Replaced>) {
        self.phase = match (self.phase, *byte) {
            (Phase::Start, b'\r' | b'\n') => Phase::Start,
            (Phase::Start | Phase::Method, b'A'..=b'Z' | b'-' | b'_') => Phase::Method,
            (Phase::Method, b' ') => Phase::Target,
            (Phase::Target, b' ' | b'\r' | b'\n') => Phase::Over,
            // Only paths are handled: in `http://host/…` the host would have to be separated from
            // the rest.
            (Phase::Target, first) if self.size == 0 && first != b'/' => Phase::Over,
            (Phase::Target, one) => {
                if needs_escape(one) {
                    replaced.push((self.size, one));
                    self.replaced_count += 1;
                    *byte = PLACEHOLDER;
                }
                self.size += 1;
                // A longer target is left as it is, and hyper refuses it.
                let is_over = self.size > MAX_TARGET || self.replaced_count >= MAX_REPLACED;
                if is_over { Phase::Over } else { Phase::Target }
            }
            (Phase::Start | Phase::Method | Phase::Over, _) => Phase::Over,
        };
    }
}

/// Where a head ends: after its first empty line, by the rules of hyper's parser.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n'))?;
    let mut rest = start;
    loop {
        let line_end = rest + bytes.get(rest..)?.iter().position(|b| *b == b'\n')? + 1;
        match bytes.get(line_end..)? {
            [b'\n', ..] => return Some(line_end + 1),
            [b'\r', b'\n', ..] => return Some(line_end + 2),
            _ => rest = line_end,
        }
    }
}

/// Restores the replaced bytes. `false`: this is not the target in which they were replaced, and
/// the request must be refused.
pub(crate) fn restore<B>(request: &mut Request<B>, replaced: &[Replaced]) -> bool {
    let Some((raw, uri)) = restored(request.uri(), replaced) else { return false };
    *request.uri_mut() = uri;
    request.extensions_mut().insert(RawTarget(raw));
    true
}

fn restored(uri: &Uri, replaced: &[Replaced]) -> Option<(HeaderValue, Uri)> {
    let target = uri.path_and_query().filter(|_| uri.authority().is_none())?;
    let mut raw = target.as_str().as_bytes().to_vec();
    for (at, byte) in replaced {
        let there = raw.get_mut(*at).filter(|there| **there == PLACEHOLDER)?;
        *there = *byte;
    }
    let mut escaped = Vec::with_capacity(raw.len() + 2 * replaced.len());
    for byte in &raw {
        if needs_escape(*byte) {
            escaped.extend_from_slice(&percent(*byte));
        } else {
            escaped.push(*byte);
        }
    }
    let uri = PathAndQuery::try_from(escaped).ok()?.into();
    Some((HeaderValue::from_bytes(&raw).ok()?, uri))
}

fn percent(byte: u8) -> [u8; 3] {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    [b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bytes that hyper receives of a head that comes in pieces, and what was replaced.
    fn scan(pieces: &[&[u8]]) -> (Vec<u8>, Vec<Replaced>) {
        let mut scan = Scan::default();
        let mut given = Vec::new();
        let mut replaced = Vec::new();
        for piece in pieces {
            let mut piece = piece.to_vec();
            replaced.extend(scan.head(&mut piece));
            given.extend(piece);
        }
        (given, replaced)
    }

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn only_the_target_of_the_first_line_is_touched() {
        for (head, given, count) in [
            (
                &b"GET /a HTTP/1.1\r\nx: \"<\r\n\r\n"[..],
                &b"GET /a HTTP/1.1\r\nx: \"<\r\n\r\n"[..],
                0,
            ),
            (
                b"GET /a?q=\"<b>\" HTTP/1.1\r\nx: <\r\n\r\n",
                b"GET /a?q=__b__ HTTP/1.1\r\nx: <\r\n\r\n",
                4,
            ),
            (b"\r\nGET /caf\xe9` HTTP/1.1\r\n\r\n", b"\r\nGET /caf__ HTTP/1.1\r\n\r\n", 2),
            (b"G<T /a HTTP/1.1\r\n\r\n", b"G<T /a HTTP/1.1\r\n\r\n", 0),
            (b"GET http://a/<b HTTP/1.1\r\n\r\n", b"GET http://a/<b HTTP/1.1\r\n\r\n", 0),
            (b"x: <a>\r\n\r\n", b"x: <a>\r\n\r\n", 0),
            (b"GET /a b<c HTTP/1.1\r\n\r\n", b"GET /a b<c HTTP/1.1\r\n\r\n", 0),
        ] {
            let (seen, replaced) = scan(&[head]);
            assert_eq!((seen.as_slice(), replaced.len()), (given, count));
            let one_by_one: Vec<&[u8]> = head.chunks(1).collect();
            assert_eq!(scan(&one_by_one), (seen, replaced), "however the head is split");
        }
    }

    #[test]
    fn replaced_bytes_are_restored_and_escaped_beside_it() {
        let (_, replaced) = scan(&[b"GET /a`b?q=\"<\xe9>_\" HTTP/1.1\r\n\r\n"]);
        let (raw, escaped) = restored(&uri("/a_b?q=______"), &replaced).unwrap();
        assert_eq!(raw.as_bytes(), b"/a`b?q=\"<\xe9>_\"");
        assert_eq!(escaped, "/a%60b?q=%22%3C%E9%3E_%22");
        for other in ["/a", "/axb?q=______", "http://a/a_b?q=______"] {
            assert!(restored(&uri(other), &replaced).is_none(), "{other}");
        }
    }

    #[test]
    fn a_head_is_looked_at_only_where_one_begins() {
        let post = b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc";
        for (first, upload, again) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], Upload::None, true),
            (post, Upload::Sized(3), true),
            (post, Upload::Sized(2), false),
            (post, Upload::Sized(4), false),
            (post, Upload::Unknown, false),
            (b"POST / HTTP/1.1\r\ncontent-le", Upload::Sized(0), false),
        ] {
            let mut scan = Scan::default();
            scan.head(&mut first.to_vec());
            scan.next_head(upload);
            assert_eq!(
                scan.head(&mut b"GET /< HTTP/1.1\r\n\r\n".to_vec()).len(),
                usize::from(again)
            );
            scan.next_head(Upload::None);
            let found = scan.head(&mut b"GET /< HTTP/1.1\r\n\r\n".to_vec()).len();
            assert_eq!(found, usize::from(again), "once the start is lost, it stays lost");
        }
    }

    proptest! {
        #[test]
        fn no_length_changes(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0_usize..300) {
            let cut = cut.min(bytes.len());
            let (seen, replaced) = scan(&[&bytes[..cut], &bytes[cut..]]);
            prop_assert_eq!(seen.len(), bytes.len());
            let changed = seen.iter().zip(&bytes).filter(|(one, other)| one != other).count();
            prop_assert!(changed <= replaced.len());
        }
    }
}
