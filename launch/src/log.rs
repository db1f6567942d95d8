//! What the programs log: to standard error, one line an event; readable on a terminal, JSON for
//! collectors. `EPSILON_LOG` filters, as in `info,epsilon_gateway=debug`.

use crate::failure::Failure;
use clap::ValueEnum;
use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// The form of a line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    /// For people
    Compact,
    /// For collectors
    Json,
}

/// Starts logging, for the whole process.
///
/// # Errors
/// When the filter is none.
pub fn init(format: Option<Format>, filter: Option<&str>) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter.unwrap_or("info")).map_err(|err| {
        Failure::usage("EPSILON_LOG is not a filter")
            .because(&err)
            .hint("write it like `info` or `info,epsilon_gateway=debug`")
    })?;
    // bollard logs whole requests at debug: environments of functions and registry credentials with them.
    let quiet = "bollard=info".parse().map_err(|err: tracing_subscriber::filter::ParseError| {
        Failure::new("LOGGING", "a filter is wrong").because(&err)
    })?;
    let filter = filter.add_directive(quiet);
    let terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { Format::Compact } else { Format::Json });
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Compact => builder.compact().with_ansi(terminal).with_target(false).init(),
        Format::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
