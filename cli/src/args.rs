//! What people may type: the list of verbs, and the one match that runs the one typed. The global
//! flags are in `globals.rs`; what a verb takes is declared beside its code, in `commands/`.

use crate::{commands, failure::Failure, globals::Globals};
use clap::{Parser, Subcommand};
use epsilon_bootstrap::sockets::Sockets;

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
    /// Back up a platform into one file, while it runs
    Backup(commands::backup::Backup),
    /// Restore a platform from a backup into a new data folder
    Restore(commands::restore::Restore),
    /// List the keys that gateways accept, and remove those of lost gateways
    Keys(commands::keys::Keys),
    /// Copy the state of gateways between SQLite and PostgreSQL
    Store(commands::store::Store),
}

/// Runs the parsed command.
pub(crate) async fn run(cli: Cli, sockets: Result<Sockets, Failure>) -> Result<(), Failure> {
    let globals = &cli.globals;
    match cli.command {
        Command::Up(up) => Box::pin(up.run(globals, sockets?)).await,
        Command::Init(init) => init.run(globals),
        Command::Dev(dev) => Box::pin(dev.run(globals)).await,
        Command::Deploy(deploy) => deploy.run(globals).await,
        Command::Build(build) => build.run(globals).await,
        Command::Invoke(invoke) => invoke.run(globals).await,
        Command::Logs(logs) => logs.run(globals).await,
        Command::Functions(functions) => functions.run(globals).await,
        Command::Versions(versions) => versions.run(globals).await,
        Command::Traffic(traffic) => traffic.run(globals).await,
        Command::Promote(promote) => promote.run(globals).await,
        Command::Rollback(rollback) => rollback.run(globals).await,
        Command::Delete(delete) => delete.run(globals).await,
        Command::Vms(vms) => vms.run(globals).await,
        Command::Builders(builders) => builders.run(globals).await,
        Command::Autoscaler(autoscaler) => autoscaler.run(globals).await,
        Command::Drain(drain) => drain.run(globals).await,
        Command::Undrain(undrain) => undrain.run(globals).await,
        Command::Backup(backup) => Box::pin(backup.run(globals)).await,
        Command::Restore(restore) => Box::pin(restore.run(globals)).await,
        Command::Keys(keys) => keys.run(globals).await,
        Command::Store(store) => store.run(globals).await,
    }
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
