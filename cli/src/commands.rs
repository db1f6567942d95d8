//! The commands, one file each, and the dispatch.

pub(crate) mod autoscaler;
pub(crate) mod backup;
pub(crate) mod build;
pub(crate) mod builders;
pub(crate) mod delete;
pub(crate) mod deploy;
pub(crate) mod dev;
pub(crate) mod drain;
pub(crate) mod functions;
pub(crate) mod init;
pub(crate) mod invoke;
pub(crate) mod keys;
pub(crate) mod logs;
pub(crate) mod promote;
pub(crate) mod restore;
pub(crate) mod rollback;
pub(crate) mod store;
pub(crate) mod traffic;
pub(crate) mod undrain;
pub(crate) mod up;
pub(crate) mod versions;
pub(crate) mod vms;

use crate::{
    args::{Cli, Command},
    failure::Failure,
};
use epsilon_bootstrap::sockets::Sockets;

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
