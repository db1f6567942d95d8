//! The task that keeps the right cells ready, at lowest priority: one boot at a time, none while
//! the engine works on a start or one has just begun, none on memory that the next start may need.
//!
//! Inputs: starts that ended, cells that were taken or died, a new base, time. Output: cells in the
//! pool. Ends with the agent, and removes the ready cells then.

use super::compatibility::Kind;
use super::pool::{Plan, QUIET};
use super::{Cell, Cells, boot};
use crate::container::budget::Grant;
use epsilon_api::vm::StartPhases;
use futures_util::FutureExt;
use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

/// How often demand is evaluated without a wake-up: idle kinds shrink, memory is freed, a pause
/// ends.
const EVALUATE_EVERY: Duration = Duration::from_secs(1);

/// Runs until the agent ends.
pub(crate) async fn run(cells: Arc<Cells>) {
    loop {
        while let Some((kind, memory)) = next(&cells) {
            // Not cancelled by the shutdown of the agent: the boot itself observes it, and cleans
            // up.
            let booted = begin(&cells, kind, Some(memory)).await;
            let (worked, cell) = match booted {
                Ok(Ok((cell, _))) => (true, Some(cell)),
                Ok(Err(_)) | Err(_) => (false, None),
            };
            let mut pool = cells.pool.lock();
            pool.note_boot(worked, cells.context.now());
            if let Some(cell) = cell {
                pool.put(cell);
            }
        }
        let pause =
            if cells.pool.lock().is_quiet(cells.context.now()) { EVALUATE_EVERY } else { QUIET };
        tokio::select! {
            // The shutdown first. All arms may be dropped: a token, a stored notification, a timer.
            biased;
            () = cells.context.closed.cancelled() => break,
            () = cells.refill_wakeup.notified() => {}
            () = sleep(pause) => {}
        }
    }
    let all = cells.pool.lock().release(u64::MAX);
    drop(all);
}

/// Removes surplus cells; returns the kind to boot next, and its memory.
fn next(cells: &Cells) -> Option<(Kind, Grant)> {
    let mut range = cells.range;
    if cells.mounts().is_none() || cells.context.is_draining() {
        range.min = 0;
        range.max = 0;
    }
    let Plan { surplus, next } =
        cells.pool.lock().plan(cells.base.newest().as_ref(), range, cells.context.now());
    drop(surplus);
    let is_quiet = cells.engine_starts.load(Ordering::Relaxed) == 0
        && cells.pool.lock().is_quiet(cells.context.now())
        && !cells.context.is_engine_down.load(Ordering::Relaxed)
        && !cells.context.closed.is_cancelled();
    let kind = next.filter(|_| is_quiet)?;
    let memory = cells.context.budget.claim_spare(kind.memory)?;
    Some((kind, memory))
}

/// Receives the result of a boot: a cell and its phases, or the reason why there is none.
pub(crate) type Booted = oneshot::Receiver<Result<(Cell, StartPhases), String>>;

/// Boots a cell in a task of its own. If the receiver is dropped, the cell is removed.
pub(crate) fn begin(cells: &Arc<Cells>, kind: Kind, memory: Option<Grant>) -> Booted {
    let (to, from) = oneshot::channel();
    let task = Arc::clone(cells);
    cells.pool.lock().count_boot(true);
    cells.context.spawn(async move {
        let began = Instant::now();
        let mut phases = StartPhases::default();
        let boot = boot::boot(&task, kind.clone(), memory, &mut phases);
        let booted = AssertUnwindSafe(boot).catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!(%kind, "Boot of a cell panicked (a bug).");
            Err("a bug of the agent".to_owned())
        });
        task.pool.lock().count_boot(false);
        match &booted {
            Ok(cell) => tracing::debug!(
                cell = %cell.resources.id, %kind, took_ms = began.elapsed().as_millis() as u64, "Cell is ready."
            ),
            Err(_) if task.context.closed.is_cancelled() => {}
            Err(why) => {
                tracing::warn!(%kind, error = why, "Cell could not be booted; the next one is booted after a pause.");
                if is_unshared(why) {
                    task.turn_off(why);
                }
            }
        }
        drop(to.send(booted.map(|cell| (cell, phases))));
    });
    from
}

/// Whether the error is Docker's way to say that it does not see the shared mount.
fn is_unshared(why: &str) -> bool {
    why.contains("not a shared") || why.contains("shared or slave mount")
}
