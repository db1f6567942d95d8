//! Escapes foreign text before it is printed on a terminal: log lines of functions, output of
//! tools, answers of a gateway. Pure; called where such text is printed, and by
//! [`failure`](crate::failure).

/// Escapes text so that it cannot control the terminal: overwrite other output, hide it, or change
/// the direction of writing. Colour codes are removed; any other control character is shown as
/// `\r` or `\u{1b}`.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(text) = after_colour(rest) {
            rest = text;
            continue;
        }
        match first {
            '\n' | '\t' => shown.push(first),
            // Not only controls in the sense of Unicode: marks, embeddings and isolates for the
            // direction of writing.
            c if c.is_control()
                || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                shown.extend(c.escape_default());
            }
            c => shown.push(c),
        }
        rest = &rest[first.len_utf8()..];
    }
    shown
}

/// The text after a leading `ESC [ 1 ; 31 m`, "select graphic rendition" (ECMA-48, 8.3.117).
fn after_colour(text: &str) -> Option<&str> {
    let codes = text.strip_prefix("\u{1b}[")?;
    let end = codes.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    codes[end..].strip_prefix('m')
}

/// Like [`visible`], for text after a label of our own such as `error:`: further lines are
/// indented, so that none looks like our output.
pub fn visible_block(text: &str) -> String {
    visible(text.trim_end()).replace('\n', "\n    ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_are_shown_and_colours_left_out() {
        let text = "a\u{1b}[31mred\u{1b}[0m\u{1b}[2J\r\u{202e}b\tc\nd\n";
        assert_eq!(visible(text), "ared\\u{1b}[2J\\r\\u{202e}b\tc\nd\n");
        assert_eq!(visible_block("a\nhint: b\n"), "a\n    hint: b");
    }
}
