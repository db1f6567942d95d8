//! The command line: global flags and the list of commands. A command's own flags are declared
//! beside its code, in `commands/`.

use crate::commands;
use clap::{Args, Parser, Subcommand};
use epsilon_api::redacted::Secret;
use std::{convert::Infallible, path::PathBuf, time::Duration};

/// A serverless platform that you own: push function code, call it over HTTP.
#[derive(Debug, Parser)]
#[command(name = "epsilon", version, max_term_width = 100, infer_subcommands = false)]
#[command(after_help = "\
Exit status: 0 done, 1 the platform or the function failed, 2 wrong usage.
Start here: `epsilon up` in one terminal; `epsilon init hello && epsilon deploy hello` in another.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

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

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the whole platform on this machine: gateway, agent and builder in one process
    Up(commands::up::Up),
    /// Write a small working project to start from
    Init(commands::init::Init),
    /// Run a project's functions on this machine's Node, without Docker, and reload them at each
    /// save
    Dev(commands::dev::Dev),
    /// Push a project: build its functions and activate them
    Deploy(commands::deploy::Deploy),
    /// Make a project's images without deploying them
    Build(commands::build::Build),
    /// Call a function and print its answer
    Invoke(commands::invoke::Invoke),
    /// Show what a function logged
    Logs(commands::logs::Logs),
    /// List the functions
    Functions(commands::functions::Functions),
    /// List the versions of a function, newest first
    Versions(commands::versions::Versions),
    /// Show where a function's calls go, or split them among versions
    Traffic(commands::traffic::Traffic),
    /// Route all traffic to one version of a function
    Promote(commands::promote::Promote),
    /// Go back to an older version of a function
    Rollback(commands::rollback::Rollback),
    /// Remove a function and all its versions
    Delete(commands::delete::Delete),
    /// List the VMs and what they hold
    Vms(commands::vms::Vms),
    /// List the builders and their state
    Builders(commands::builders::Builders),
    /// Show how many VMs are wanted, why, and the last actions
    Autoscaler(commands::autoscaler::Autoscaler),
    /// Stop sending calls to a VM and let running ones finish
    Drain(commands::drain::Drain),
    /// Send calls to a drained VM again
    Undrain(commands::undrain::Undrain),
    /// Write all of a platform that cannot be made again into one file, while it runs
    Backup(commands::backup::Backup),
    /// Bring a platform back from such a file, into a new data folder
    Restore(commands::restore::Restore),
    /// List the keys that gateways take, and remove those of lost gateways
    Keys(commands::keys::Keys),
    /// Move the state of gateways: from a file to a data base that several share, or back
    Store(commands::store::Store),
}

fn secret(text: &str) -> Result<Secret<String>, Infallible> {
    Ok(Secret::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::CommandFactory as _;

    #[test]
    fn the_declaration_is_sound() {
        Cli::command().debug_assert();
    }
}
