//! The task that visits all pools each second: prewarms instances just before their calls are
//! expected, records how often functions are called, reports the decisions, and writes the
//! histories each minute and at shutdown. Started by `app.rs`; ends with the agent.

use super::file;
use super::file::write_atomically;
use crate::{context::history_file, vm::LocalVm};
use epsilon_api::{chain::Chain, vm::Keep};
use futures_util::FutureExt;
use std::{io, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

/// Pauses are measured in tens of seconds; the start of an instance takes less than one.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Longest time that a crash may lose.
const WRITE_EVERY: Duration = Duration::from_secs(60);
/// Limit of versions whose decision a VM reports each second.
const REPORTED: usize = 256;

/// Runs until the agent shuts down, and writes once more.
pub(crate) async fn run(vm: Arc<LocalVm>) {
    let mut sweeps = interval(SWEEP_EVERY);
    let mut writes = interval(WRITE_EVERY);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    writes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    writes.tick().await; // the first tick is immediate, and nothing changed yet
    let mut is_reported = false;
    loop {
        tokio::select! {
            // The shutdown first. All arms may be dropped: a token, timers.
            biased;
            () = vm.closed.cancelled() => break,
            _ = writes.tick() => store(&vm, &mut is_reported).await,
            _ = sweeps.tick() => {
                let swept = AssertUnwindSafe(async { sweep(&vm) }).catch_unwind().await;
                if swept.is_err() {
                    tracing::error!("Check of all pools (prewarms, pauses) panicked (a bug); the next one runs in a second.");
                }
            }
        }
    }
    store(&vm, &mut is_reported).await;
}

fn sweep(vm: &Arc<LocalVm>) {
    let pools = vm.pools();
    vm.note_uses(&pools);
    let mut keeps: Vec<Keep> = pools.iter().filter_map(|pool| pool.keep_alive()).collect();
    keeps.sort_unstable_by(|a, b| (&a.function, a.version).cmp(&(&b.function, b.version)));
    keeps.truncate(REPORTED);
    *vm.keeps.lock() = keeps;
    if vm.is_draining() {
        return;
    }
    // Prewarms must not delay calls: no more than could start at once by now.
    let room = vm.starts.available_permits();
    pools.iter().filter(|pool| pool.start_prewarm()).take(room).for_each(drop);
}

/// Writes changed histories. A full or slow disk affects nothing else.
async fn store(vm: &Arc<LocalVm>, is_reported: &mut bool) {
    let Some(changes) = vm.histories.changes() else { return };
    let path = history_file(&vm.config);
    let written = spawn_blocking(move || {
        let text = file::text(changes).map_err(io::Error::other)?;
        write_atomically(&path, &text)
    });
    match written.await.unwrap_or_else(|err| Err(io::Error::other(err))) {
        Ok(()) => *is_reported = false,
        Err(err) if !std::mem::replace(is_reported, true) => {
            tracing::warn!(error = %Chain(&err), "Pauses of functions could not be stored; a restart measures them again.");
        }
        Err(_) => {}
    }
}
