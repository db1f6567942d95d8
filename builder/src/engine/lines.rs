//! Splits a tool's output into lines that can be shown: bounded, without control characters. Used
//! for containers and for the engine's builder.

/// Longest line that is shown, in bytes; the rest of it is dropped.
const LONGEST: usize = 4096;

/// The beginning of an unfinished line.
#[derive(Debug, Default)]
pub(super) struct Lines {
    open: Vec<u8>,
}

impl Lines {
    /// Takes a piece of output and reports each completed line.
    pub(super) fn push(&mut self, piece: &[u8], on_line: &mut impl FnMut(&str)) {
        let mut rest = piece;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            self.extend(&rest[..end]);
            self.finish(on_line);
            rest = &rest[end + 1..];
        }
        self.extend(rest);
    }

    /// Reports the last line, which has no newline.
    pub(super) fn finish(&mut self, on_line: &mut impl FnMut(&str)) {
        let text = clean(&String::from_utf8_lossy(&self.open));
        self.open.clear();
        if !text.is_empty() {
            on_line(&text);
        }
    }

    fn extend(&mut self, bytes: &[u8]) {
        let room = LONGEST.saturating_sub(self.open.len());
        self.open.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// Strips escape sequences and control characters; of text overwritten by carriage returns
/// (progress bars) only the last state stays.
fn clean(line: &str) -> String {
    let line = line.trim_end();
    let line = line.rsplit('\r').next().unwrap_or(line);
    let mut text = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                // `ESC [ … letter`: colours and cursor moves.
                if chars.as_str().starts_with('[') {
                    chars.by_ref().skip(1).find(char::is_ascii_alphabetic);
                }
            }
            '\t' => text.push(' '),
            c if c.is_control() => {}
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&str]) -> Vec<String> {
        let mut seen = Vec::new();
        let mut on_line = |line: &str| seen.push(line.to_owned());
        let mut lines = Lines::default();
        for piece in pieces {
            lines.push(piece.as_bytes(), &mut on_line);
        }
        lines.finish(&mut on_line);
        seen
    }

    #[test]
    fn pieces_become_lines() {
        assert_eq!(lines(&["a", "b\nc\n\n", "d"]), ["ab", "c", "d"]);
    }

    #[test]
    fn colours_progress_and_controls_are_dropped() {
        assert_eq!(lines(&["\u{1b}[31mred\u{1b}[0m\n"]), ["red"]);
        assert_eq!(lines(&["10%\r50%\r100%\r\n"]), ["100%"]);
        assert_eq!(lines(&["a\u{7}b\u{1b}"]), ["ab"]);
    }

    #[test]
    fn a_line_without_an_end_is_bounded() {
        let long = "x".repeat(LONGEST);
        assert_eq!(lines(&[&long, &long, &long]), [long]);
    }
}
