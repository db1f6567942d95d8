//! The task that looks at all pools each second: starts instances just before their calls are expected, notes how often
//! functions are called, tells what was chosen, and writes what lasts each minute and at the end. Started by `app.rs`;
//! ends with the agent.

use super::file;
use crate::{
    app::write_whole,
    vm::{LocalVm, keep_file},
};
use epsilon_api::{chain::Chain, vm::Keep};
use futures_util::FutureExt;
use std::{io, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

/// Pauses are measured in tens of seconds; the start of an instance takes less than one.
const LOOK: Duration = Duration::from_secs(1);
/// What a crash may lose.
const WRITE: Duration = Duration::from_secs(60);
/// Versions that a VM tells of: it does so each second.
const TOLD: usize = 256;

/// Runs until the agent ends, and writes once more.
pub(crate) async fn run(vm: Arc<LocalVm>) {
    let (mut look, mut write) = (interval(LOOK), interval(WRITE));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    write.set_missed_tick_behavior(MissedTickBehavior::Delay);
    write.tick().await; // the first is at once, and there is nothing new
    let mut is_told = false;
    loop {
        tokio::select! {
            // The end first. All arms may be dropped: a token, timers.
            biased;
            () = vm.closed.cancelled() => break,
            _ = write.tick() => keep(&vm, &mut is_told).await,
            _ = look.tick() => {
                let swept = AssertUnwindSafe(async { sweep(&vm) }).catch_unwind().await;
                if swept.is_err() {
                    tracing::error!("A bug: the look at idle instances panicked.");
                }
            }
        }
    }
    keep(&vm, &mut is_told).await;
}

fn sweep(vm: &Arc<LocalVm>) {
    let pools = vm.pools();
    vm.note_uses(&pools);
    let mut keeps: Vec<Keep> = pools.iter().filter_map(|pool| pool.keep()).collect();
    keeps.sort_unstable_by(|a, b| (&a.function, a.version).cmp(&(&b.function, b.version)));
    keeps.truncate(TOLD);
    *vm.keeps.lock() = keeps;
    if vm.is_draining() {
        return;
    }
    // What is due in the same second does not stand in the way of calls: no more than could start at once by now.
    let room = vm.starts.available_permits();
    pools.iter().filter(|pool| pool.start_ahead()).take(room).for_each(drop);
}

/// A disk that is full or slow costs nobody anything but this.
async fn keep(vm: &Arc<LocalVm>, is_told: &mut bool) {
    let Some(news) = vm.histories.news() else { return };
    let path = keep_file(&vm.config);
    let written = spawn_blocking(move || {
        let text = file::text(news).map_err(io::Error::other)?;
        write_whole(&path, &text)
    });
    match written.await.unwrap_or_else(|err| Err(io::Error::other(err))) {
        Ok(()) => *is_told = false,
        Err(err) if !std::mem::replace(is_told, true) => {
            tracing::warn!(cause = %Chain(&err), "Pauses of functions are not kept.");
        }
        Err(_) => {}
    }
}
