//! The second part of the demo: a gateway, a builder and three agents on this machine; functions
//! that stay on their VMs; one agent killed under load; and an autoscaler that orders VMs by a
//! command. `infra/demo-fleet.sh` builds and runs it.
//!
//! Prints each step, then runs until Ctrl-C; with `DEMO_EXIT=1` it ends by itself. In any case it
//! removes everything and checks that. Exit status 1 when a count is not as promised.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "it shows things, and fails by panicking"
)]

mod autoscaler;
mod leftovers;
mod routing;

use epsilon_e2e::fleet::Fleet;
use std::{
    io::{IsTerminal, stdout},
    process::ExitCode,
};
use tokio::signal::unix::{SignalKind, signal};

/// A terminal escape sequence, or nothing elsewhere.
fn style(code: &'static str) -> &'static str {
    if stdout().is_terminal() { code } else { "" }
}

fn title(text: &str) {
    println!("\n{}== {text}{}", style("\x1b[1m"), style("\x1b[0m"));
}

fn note(text: &str) {
    println!("{}{text}{}", style("\x1b[2m"), style("\x1b[0m"));
}

/// Runs all parts; returns whether every count was as promised. The caller owns the current fleet
/// and ends it.
async fn acts(stage: &mut Option<Fleet>) -> bool {
    let fleet = stage.insert(routing::start().await);
    let is_good = routing::act(fleet).await;
    end(stage);
    let (fleet, mut cloud) = autoscaler::start().await;
    let fleet = stage.insert(fleet);
    let is_good = cloud.act(fleet).await && is_good;
    if std::env::var("DEMO_EXIT").as_deref() != Ok("1") {
        cloud.stay(fleet).await;
    }
    is_good
}

/// Ends the current fleet and reports what is left of it.
fn end(stage: &mut Option<Fleet>) -> bool {
    let Some(fleet) = stage.take() else { return true };
    let traces = leftovers::Traces::of(&fleet);
    drop(fleet);
    traces.are_gone()
}

async fn shutdown_signal() {
    let mut ends = [SignalKind::interrupt(), SignalKind::terminate()]
        .map(|kind| signal(kind).expect("signals can be listened to"));
    let [interrupt, terminate] = &mut ends;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut stage = None;
    let is_good = tokio::select! {
        is_good = acts(&mut stage) => is_good,
        () = shutdown_signal() => true,
    };
    title("The end");
    note("stopping agents, builder and gateway, removing containers …");
    let is_clean = end(&mut stage);
    if is_clean {
        note("nothing is left: no container, no network, no process, no data");
    }
    if is_good && is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
