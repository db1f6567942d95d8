//! The progress of a push as the pusher reads it after `remote:`: short lines without colours, and
//! without anything that a terminal could take for a command.

use epsilon_api::{
    admin::{DeployEvent, DeploymentInfo},
    error::ErrorBody,
};

/// git writes `remote: ` before each line; both fit into a terminal of 100 columns.
const WIDTH: usize = 90;
/// Longest line of a tool's output. Minified code can be one line of a megabyte.
const MAX_LINE: usize = 1000;

/// The lines of one event.
pub(crate) fn lines(event: &DeployEvent) -> Vec<String> {
    match event {
        DeployEvent::Accepted { .. } | DeployEvent::StepStarted { .. } => Vec::new(),
        DeployEvent::StepDone { step, detail, took_ms } => {
            wrapped(&format!("{step:<13} {:>7}  {detail}", seconds(*took_ms)), 23)
        }
        DeployEvent::Log { line } => wrapped(&format!("  {line}"), 4),
        DeployEvent::Done { deployment } => done(deployment),
        DeployEvent::Failed { error } => failed(error),
    }
}

/// The lines of a refusal, if no deployment was started.
pub(crate) fn refused(why: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    lines.extend(wrapped(&format!("refused: {why}"), 2));
    lines.push(String::new());
    lines
}

fn done(deployment: &DeploymentInfo) -> Vec<String> {
    let functions = &deployment.functions;
    let width = functions.iter().map(|one| one.name.as_str().len()).max().unwrap_or(0);
    let mut lines = vec![String::new()];
    lines.extend(functions.iter().map(|one| {
        let version = format!("v{}", one.version);
        let note = if one.changed { "" } else { "  (unchanged)" };
        // Never wrapped, so that the URL can be clicked.
        format!("{:width$}  {version:<4}  {}{note}", one.name.as_str(), one.url)
    }));
    lines.push(String::new());
    lines
}

fn failed(error: &ErrorBody) -> Vec<String> {
    let mut lines = vec![String::new()];
    let message = format!("{}: {}", error.code, error.message);
    lines.extend(message.lines().flat_map(|line| wrapped(line, 2)));
    if let Some(hint) = &error.hint {
        lines.extend(wrapped(&format!("hint: {hint}"), 6));
    }
    lines.push("nothing was changed: the previous version still serves".into());
    lines.push(String::new());
    lines
}

fn seconds(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        _ => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
    }
}

/// Wraps a line at [`WIDTH`], between words; a longer word stays whole.
fn wrapped(line: &str, indent: usize) -> Vec<String> {
    let line = clean(line);
    let text = line.trim_end();
    let lead = text.len() - text.trim_start().len();
    let (mut lines, mut current) = (Vec::new(), text[..lead].to_owned());
    let mut is_fresh = true;
    // Spaces between words stay, except where the line is broken.
    for word in text[lead..].split_inclusive(' ') {
        let is_full = current.chars().count() + word.trim_end().chars().count() > WIDTH;
        if is_full && !is_fresh {
            lines.push(current.trim_end().to_owned());
            current = " ".repeat(indent);
        }
        current.push_str(word);
        is_fresh = false;
    }
    lines.push(current.trim_end().to_owned());
    lines
}

/// Removes escape sequences and other control characters, and limits the length.
fn clean(line: &str) -> String {
    let mut text = String::new();
    let mut length = 0;
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match char {
            '\u{1b}' => skip_escape(&mut chars),
            '\t' => text.push_str("    "),
            char if char.is_control() => {}
            _ if length == MAX_LINE => {
                text.push('…');
                break;
            }
            char => text.push(char),
        }
        length += 1;
    }
    text
}

/// Skips the rest of a sequence: `[` up to its letter, `]` up to its bell; otherwise one character.
fn skip_escape(chars: &mut std::str::Chars<'_>) {
    match chars.next() {
        Some('[') => drop(chars.find(|char| ('@'..='~').contains(char))),
        Some(']') => drop(chars.find(|char| matches!(char, '\u{7}' | '\\'))),
        Some(_) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use epsilon_api::admin::Step;

    #[test]
    fn a_terminal_gets_nothing_but_text() {
        for (line, want) in [
            ("\u{1b}[31mred\u{1b}[0m", "  red"),
            ("\u{1b}]0;title\u{7}text", "  text"),
            ("50%\r100%", "  50%100%"),
            ("a\tb", "  a    b"),
            ("\u{1b}", ""),
            ("bell\u{7}\u{8}", "  bell"),
        ] {
            assert_eq!(lines(&DeployEvent::Log { line: line.into() }), [want], "{line:?}");
        }
    }

    #[test]
    fn long_lines_are_broken_between_words_and_end_somewhere() {
        let printed = lines(&DeployEvent::Log { line: "word ".repeat(5000) });
        assert!(printed.iter().all(|line| line.chars().count() <= WIDTH), "{printed:?}");
        assert!(printed.len() > 5 && printed.len() < 20, "{}", printed.len());
        assert!(printed[1].starts_with("    word"));
        let whole = "x".repeat(300);
        assert_eq!(lines(&DeployEvent::Log { line: whole.clone() }), [format!("  {whole}")]);
    }

    #[test]
    fn steps_stand_in_columns() {
        let step = |step, took_ms, detail: &str| {
            lines(&DeployEvent::StepDone { step, detail: detail.into(), took_ms })
        };
        assert_eq!(step(Step::Source, 12, "5 files"), ["source          12 ms  5 files"]);
        assert_eq!(step(Step::Dependencies, 61_250, "cached"), ["dependencies   61.2 s  cached"]);
    }

    #[test]
    fn a_failure_says_what_why_and_what_next() {
        let status = http::StatusCode::UNPROCESSABLE_ENTITY;
        let hint = Some("fix it".to_owned());
        let error = ErrorBody::new(status, "LOAD_FAILED", "index.js:\n  boom", hint);
        let want = [
            "",
            "LOAD_FAILED: index.js:",
            "  boom",
            "hint: fix it",
            "nothing was changed: the previous version still serves",
            "",
        ];
        assert_eq!(lines(&DeployEvent::Failed { error }), want);
    }
}
