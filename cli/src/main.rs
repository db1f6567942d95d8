//! The `epsilon` program: parses the command line, runs one command, and exits with its code.
//!
//! Composition only. The command line is in `args.rs`; each command is a file in `commands/`.

mod args;
mod backup;
mod client;
mod commands;
mod confirm;
mod globals;
mod output;

use epsilon_bootstrap::{arguments, data_dir, failure, sockets::Sockets};
use failure::Failure;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli: args::Cli = arguments::parse(); // exits on --help (0) and wrong usage (2)
    let sockets = Sockets::take(); // before there are other threads; only `up` uses them
    let json = cli.globals.json;
    let ended = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(Box::pin(args::run(cli, sockets))),
        Err(err) => {
            Err(Failure::new("RUNTIME", "the system refused worker threads").with_cause(&err))
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}
