//! Shared by the programs of a fleet, from their first line to their exit code: the flags, the
//! runtime, the `ready` line, and errors at the start. What a program does is in its own `main.rs`.
//!
//! The `epsilon` command line has commands and output of its own; it takes from here only what
//! fits.

use crate::{
    data_dir,
    failure::Failure,
    log::{self, Format, Logging},
    settings::{Flag, Layers},
};
use clap::Args;
use std::{error::Error, io::Write as _, path::PathBuf, process::ExitCode};

/// The flags that every program takes.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Data folder [default: /var/lib/epsilon for root, else the XDG data folder]
    #[arg(long, value_name = "DIR", env = "EPSILON_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Settings file, YAML: each program reads its own section
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Format of log lines on standard error [default: compact on a terminal, else json]
    #[arg(long, value_enum)]
    log_format: Option<Format>,
}

impl CommonArgs {
    /// Starts logging, until the returned value is dropped; finds the data folder and reads the
    /// settings, overridden by `flags`.
    ///
    /// # Errors
    /// When an argument or a setting cannot be used.
    pub fn begin(&self, flags: &[Flag]) -> Result<(Logging, PathBuf, Layers), Failure> {
        let logging = log::init(self.log_format, log::filter().as_deref())?;
        let data = data_dir::locate(self.data_dir.as_deref())?;
        let layers = Layers::load(self.config.as_deref(), std::env::vars_os(), flags)?;
        Ok((logging, data, layers))
    }
}

/// Flags of one section, given as `(flag, setting, value)`; those without a value are left out.
pub fn flags<const N: usize>(
    section: &'static str,
    all: [(&'static str, &'static str, Option<String>); N],
) -> Vec<Flag> {
    let flag =
        |(name, key, value): (_, _, Option<_>)| Some(Flag { name, section, key, value: value? });
    all.into_iter().filter_map(flag).collect()
}

/// Runs a program to its end and returns its exit code.
pub fn run(work: impl Future<Output = Result<(), Failure>>) -> ExitCode {
    let ended = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(Box::pin(work)),
        Err(err) => {
            Err(Failure::new("RUNTIME", "the system refused worker threads").with_cause(&err))
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(false),
    }
}

/// Prints the one line of standard output: the process that started this one waits for it.
///
/// # Errors
/// When standard output is closed.
pub fn ready(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written
        .map_err(|err| Failure::new("STDOUT", "standard output cannot be written").with_cause(&err))
}

/// A setting that is valid YAML but not usable: exit code 2.
pub fn invalid_setting(err: &(dyn Error + 'static)) -> Failure {
    Failure::usage("a setting cannot be used").with_cause(err)
}

/// The machine or another part is not usable: exit code 1.
pub fn start_failure(program: &str, err: &(dyn Error + 'static)) -> Failure {
    Failure::new("START", format!("`{program}` cannot start")).with_cause(err)
}

/// Work that still ran at the end of the grace period: exit code 1, if there was any.
///
/// # Errors
/// When work was cut.
pub fn check_none_cut(cut: usize, what: &str, setting: &str) -> Result<(), Failure> {
    match cut {
        0 => Ok(()),
        cut => {
            let code = format!("{}_CUT", what.to_uppercase());
            Err(Failure::new(&code, format!("{cut} running {what} were cut"))
                .hint(format!("give them longer with the setting `{setting}`")))
        }
    }
}
