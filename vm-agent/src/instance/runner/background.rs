//! Starts that no call waits for: new versions of a deployment, `minInstances`, what is expected. They take turns of their
//! own, of which there are half as many as starts at once, so that a call's start never stands in the engine's queue behind a
//! project of two hundred functions. Memory is asked for with the turn in hand: one after the other, each can have
//! what the one before it does not need any more.
//!
//! Called by `way.rs`. Once a call waits for such a start, it is like any other.

use super::Runner;
use crate::instance::start::StartFailure;
use tokio::sync::OwnedSemaphorePermit;

/// A place among the starts that nobody waits for. Dropping it lets the next one begin.
pub(super) struct BackgroundTurn {
    _permit: OwnedSemaphorePermit,
}

impl Runner {
    /// `None`: a call waits for the start. Waits for the turn as long as the start is needed and nobody calls.
    pub(super) async fn take_background_turn(
        &self,
    ) -> Result<Option<BackgroundTurn>, StartFailure> {
        let mut changes = self.pool.changes();
        let turn = self.vm.background_starts.clone().acquire_owned();
        tokio::pin!(turn);
        loop {
            if self.pool.has_waiting_calls() {
                return Ok(None);
            }
            if !self.pool.is_start_needed() {
                return Err(StartFailure::CalledOff);
            }
            tokio::select! {
                // Both may be dropped: a place in a queue that is kept across rounds, a stored notice.
                turn = &mut turn => {
                    let permit = turn.map_err(|_| StartFailure::CalledOff)?;
                    return match self.pool.is_start_needed() {
                        true => Ok(Some(BackgroundTurn { _permit: permit })),
                        false => Err(StartFailure::CalledOff),
                    };
                }
                changed = changes.changed() => changed.map_err(|_| StartFailure::CalledOff)?,
            }
        }
    }
}
