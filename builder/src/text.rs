//! Developers' text: decodes their files, whatever their editor wrote (`epsilon.yaml`,
//! `package.json`), and shortens what a message quotes of it.

use crate::error::{self, Hint};
use epsilon_api::build::BuildError;

/// Byte order mark of UTF-8, which editors may write; not part of the text.
const MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// The text of the file with this name.
///
/// # Errors
/// `MANIFEST_INVALID` when it is not UTF-8, with a hint for UTF-16, which some editors and shells
/// write.
pub(crate) fn decode(name: &str, mut bytes: Vec<u8>) -> Result<String, BuildError> {
    if bytes.starts_with(&MARK) {
        bytes.drain(..MARK.len());
    }
    if is_utf16(&bytes) {
        return Err(error::manifest_invalid(format!("{name} is UTF-16 text; it must be UTF-8"))
            .hint("save it as UTF-8 in the editor; in PowerShell, `Set-Content -Encoding utf8` writes it"));
    }
    String::from_utf8(bytes)
        .map_err(|_| error::manifest_invalid(format!("{name} is not UTF-8 text")))
}

/// By its byte order mark; without one, by the zero byte that one of the first two characters then
/// has.
fn is_utf16(bytes: &[u8]) -> bool {
    matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, _, 0, _, ..] | [_, 0, _, 0, ..])
}

/// A developer's text, shortened for an error message.
pub(crate) fn short(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let mut short: String = clean.take(61).collect();
    if short.chars().count() > 60 {
        short.pop();
        short.push('…');
    }
    short
}

/// Names for a message: "`a`, `b`"; a long list is cut.
pub(crate) fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const MOST: usize = 20;
    let quoted: Vec<_> = names.map(|name| format!("`{}`", short(name))).collect();
    match quoted.get(MOST..) {
        None | Some([]) => quoted.join(", "),
        Some(rest) => format!("{} and {} more", quoted[..MOST].join(", "), rest.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_as_editors_save_it() {
        let read = |bytes: &[u8]| decode("epsilon.yaml", bytes.to_vec());
        assert_eq!(read(b"\xef\xbb\xbfa: 1\r\n").unwrap(), "a: 1\r\n");
        assert_eq!(read(b"").unwrap(), "");
        assert_eq!(read(b"\xff").unwrap_err().message, "epsilon.yaml is not UTF-8 text");
        for utf16 in [&b"\xff\xfea\0:\0"[..], b"\xfe\xff\0a\0:", b"a\0:\0", b"\0a\0:"] {
            let err = read(utf16).unwrap_err();
            assert!(err.message.contains("UTF-16") && err.hint.is_some(), "{utf16:?}: {err}");
        }
    }
}
