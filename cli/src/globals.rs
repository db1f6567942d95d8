//! The flags that every verb takes: which gateway, with which key and authority, in which format
//! the answer is printed, and how long to wait.

use clap::Args;
use epsilon_api::redacted::Secret;
use std::{convert::Infallible, path::PathBuf, time::Duration};

/// Flags of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Globals {
    /// Control address of the gateway [default: the `epsilon up` of this data folder, else
    /// http://127.0.0.1:8081]
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "EPSILON_GATEWAY",
        hide_env_values = true
    )]
    pub(crate) gateway: Option<String>,

    /// File of the authorities (PEM) whose certificates the gateway may have, for `https://`
    /// [default: the system's]
    #[arg(long, global = true, value_name = "FILE", env = "EPSILON_CA", hide_env_values = true)]
    pub(crate) ca: Option<PathBuf>,

    /// Key for the control API [default: the one in DATA/admin.key]
    #[arg(long, global = true, value_name = "KEY", env = "EPSILON_KEY", hide_env_values = true)]
    #[arg(value_parser = secret)]
    pub(crate) key: Option<Secret<String>>,

    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Where the platform keeps its data [default: /var/lib/epsilon for root, else the XDG data
    /// folder]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "EPSILON_DATA_DIR",
        hide_env_values = true
    )]
    pub(crate) data_dir: Option<PathBuf>,

    /// Longest wait for an answer [default: 1m; 15m for deploy and invoke]
    #[arg(long, global = true, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

fn secret(text: &str) -> Result<Secret<String>, Infallible> {
    Ok(Secret::new(text.to_owned()))
}
