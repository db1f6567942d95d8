//! The second act of the demo: a gateway, a builder and three agents on this machine; functions that keep to
//! their VMs; one agent killed under load; and an autoscaler that asks moto for VMs. `infra/demo-fleet.sh` builds
//! and runs it.
//!
//! Prints what it does as it does it, then stays up until Ctrl-C; with `DEMO_EXIT=1` it ends by itself. However it
//! ends, it removes everything and looks whether that is true. Exit status 1 when a count is not what was promised.

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

/// How text looks on a terminal, and nothing elsewhere.
fn style(code: &'static str) -> &'static str {
    if stdout().is_terminal() { code } else { "" }
}

fn title(text: &str) {
    println!("\n{}== {text}{}", style("\x1b[1m"), style("\x1b[0m"));
}

fn note(text: &str) {
    println!("{}{text}{}", style("\x1b[2m"), style("\x1b[0m"));
}

/// All acts; whether every count was as promised. The fleet of the moment is the caller's, who has to end it.
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

/// Ends the fleet of the moment and says what is left of it.
fn end(stage: &mut Option<Fleet>) -> bool {
    let Some(fleet) = stage.take() else { return true };
    let traces = leftovers::Traces::of(&fleet);
    drop(fleet);
    traces.are_gone()
}

async fn told_to_end() {
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
        () = told_to_end() => true,
    };
    title("The end");
    note("ending agents, builder and gateway, removing containers …");
    let is_clean = end(&mut stage);
    if is_clean {
        note("nothing is left behind: no container, no network, no process, no data");
    }
    if is_good && is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
