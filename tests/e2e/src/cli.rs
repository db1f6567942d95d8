//! The command line as used in a shell: arguments in; output, errors and exit code out.

use crate::{
    up::{Epsilon, binary},
    wait::{LONG, within},
};
use serde_json::Value;
use std::{ffi::OsStr, fmt, path::Path, process::Stdio};
use tokio::process::Command;

/// Result of a command.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// This outcome, if it has this exit code.
    ///
    /// # Panics
    /// When it has another one.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// Standard output, parsed as JSON.
    ///
    /// # Panics
    /// When it is not JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|err| panic!("{err}: {self}"))
    }

    /// Output and errors together.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit {}\n--- out\n{}\n--- err\n{}", self.code, self.stdout, self.stderr)
    }
}

impl Epsilon {
    /// A command with this platform's address and key.
    pub fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(binary());
        command
            .current_dir(folder)
            .env("EPSILON_GATEWAY", format!("http://{}", self.control()))
            .env("EPSILON_KEY", self.key())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs `epsilon ARGUMENTS` to its end in an empty folder.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn cli<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Outcome {
        self.cli_in(&std::env::temp_dir(), arguments).await
    }

    /// Runs `epsilon ARGUMENTS` to its end in a folder.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn cli_in<S: AsRef<OsStr>>(&self, folder: &Path, arguments: &[S]) -> Outcome {
        let mut command = self.command(folder);
        command.args(arguments);
        run(command).await
    }
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started or does not end.
pub async fn run(mut command: Command) -> Outcome {
    let what = format!("{:?}", command.as_std());
    let output = within(&what, LONG, command.output()).await;
    let output = output.unwrap_or_else(|err| panic!("{what}: {err}"));
    Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
