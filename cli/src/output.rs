//! Standard output: tables and lines for people, JSON for programs. A reader that closes the pipe
//! (`| head`) ends the program quietly. Colour never carries meaning, and goes only to terminals.

use crate::failure::Failure;
use comfy_table::{CellAlignment, Table, presets};
use jiff::Timestamp;
use serde::Serialize;
use std::{
    io::{self, Write as _},
    time::Duration,
};

pub(crate) use epsilon_bootstrap::visible::visible;

/// Blanks between two columns.
const GAP: u16 = 2;

/// Prints an answer as indented JSON: lists whole, without the control API's envelope and pages.
pub(crate) fn json<T: Serialize>(data: T) -> Result<(), Failure> {
    line(&serde_json::to_string_pretty(&data).map_err(|err| unprintable(&err))?)
}

/// Prints a value as one line of JSON.
pub(crate) fn json_line<T: Serialize + ?Sized>(value: &T) -> Result<(), Failure> {
    line(&serde_json::to_string(value).map_err(|err| unprintable(&err))?)
}

/// Prints one line.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    bytes(text.as_bytes())?;
    bytes(b"\n")
}

/// Prints bytes as they are and flushes, so that streams are seen as they come.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|err| {
        if err.kind() == io::ErrorKind::BrokenPipe {
            // As every other program in a pipe ends: at once, silently, and not with success.
            Failure::silent()
        } else {
            Failure::new("OUTPUT", "standard output cannot be written").with_cause(&err)
        }
    })
}

/// Ends a body on a terminal, so that the prompt starts on a new line. In a pipe, a body is exactly
/// its bytes.
pub(crate) fn end_of_body() -> Result<(), Failure> {
    if console::Term::stdout().is_term() { line("") } else { Ok(()) }
}

/// `1 version`, `2 versions`.
pub(crate) fn count(number: usize, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

/// A time for a table: UTC, to the second.
pub(crate) fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A duration, short and precise enough.
pub(crate) fn took(took: Duration) -> String {
    match took.as_secs_f64() {
        s if s < 0.01 => format!("{:.1} ms", s * 1000.0),
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s => format!("{s:.1} s"),
    }
}

/// Prints a table: a line of headings, then the rows. `numbers` are the columns to align right.
pub(crate) fn table<const N: usize>(
    headings: [&str; N],
    numbers: &[usize],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Result<(), Failure> {
    for row in layout(headings, numbers, rows).lines() {
        line(row.trim_end())?;
    }
    Ok(())
}

fn layout<const N: usize>(
    headings: [&str; N],
    numbers: &[usize],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headings).add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, GAP));
        if numbers.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

fn unprintable(err: &serde_json::Error) -> Failure {
    Failure::new("OUTPUT", "the answer cannot be printed").with_cause(err)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_table_is_plain_columns() {
        let rows = [["a".to_owned(), "1".to_owned()], ["longer".to_owned(), "20".to_owned()]];
        let text = super::layout(["NAME", "SIZE"], &[1], rows);
        let trimmed: Vec<_> = text.lines().map(str::trim_end).collect();
        assert_eq!(trimmed, ["NAME    SIZE", "a          1", "longer    20"]);
    }
}
