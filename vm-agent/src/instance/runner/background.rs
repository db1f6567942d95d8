//! Starts that no call waits for: new versions of a deployment, `minInstances`, prewarms. They take
//! turns from a semaphore of their own, with half as many permits as `starts` has, so that a call's
//! start never queues in the engine after a project of two hundred functions. Memory is requested
//! with the turn in hand: each start can then have what the one before it freed.
//!
//! Called by `start_path.rs`. Once a call waits for such a start, it is treated like any other.

use super::Runner;
use crate::container::failure::StartFailure;
use tokio::sync::OwnedSemaphorePermit;

/// A permit for one background start. Dropping it lets the next one begin.
pub(super) struct BackgroundTurn {
    _permit: OwnedSemaphorePermit,
}

impl Runner {
    /// Takes a turn; waits for it as long as the start is needed and no call waits. `None`: a call
    /// waits for the start.
    pub(super) async fn take_background_turn(
        &self,
    ) -> Result<Option<BackgroundTurn>, StartFailure> {
        let mut changes = self.pool.changes();
        let turn = self.context.background_starts.clone().acquire_owned();
        tokio::pin!(turn);
        loop {
            if self.pool.has_waiting_calls() {
                return Ok(None);
            }
            if !self.pool.is_start_needed() {
                return Err(StartFailure::Cancelled);
            }
            tokio::select! {
                // Both may be dropped: a place in the semaphore's queue that lasts across rounds,
                // a stored notification.
                turn = &mut turn => {
                    let permit = turn.map_err(|_| StartFailure::Cancelled)?;
                    return if self.pool.is_start_needed() {
                        Ok(Some(BackgroundTurn { _permit: permit }))
                    } else {
                        Err(StartFailure::Cancelled)
                    };
                }
                changed = changes.changed() => changed.map_err(|_| StartFailure::Cancelled)?,
            }
        }
    }
}
