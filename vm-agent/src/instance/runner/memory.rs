//! Memory for one start: what is free, what is being freed anyway, what can be evicted. Unassigned
//! cells are evicted before idle instances of other versions: a cell only speeds up some next
//! start, and the pool of cells is refilled later. For a start
//! that no call waits for, the order is the opposite.

use super::Runner;
use crate::container::budget::{Claim, Grant};
use crate::container::failure::StartFailure;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

/// Pause between two attempts to get memory that other instances may have freed.
const MEMORY_PAUSE: Duration = Duration::from_millis(50);

impl Runner {
    /// Reports to the pool that there is no memory, before anything that takes long, such as a
    /// pull.
    pub(super) fn report_memory_shortage(&self) {
        let shortage = self.context.budget.shortage(self.instance.version.spec.memory);
        let shortage = shortage.saturating_sub(self.cells.spare_bytes());
        if shortage > 0 && !self.pool.host.can_evict(shortage, &self.pool) {
            self.pool.report_memory_wait(self.key, true);
        }
    }

    /// Takes memory if it is free, or can be evicted right now. Returns whether it did.
    pub(super) async fn try_take_memory(&self) -> Result<bool, StartFailure> {
        let Some(grant) = self.claim_memory().await? else { return Ok(false) };
        self.instance.add_memory(grant);
        self.pool.report_memory_wait(self.key, false);
        Ok(true)
    }

    /// Waits for memory as long as a call waits for a slot: other instances become idle when their
    /// calls end. Between two attempts nothing is claimed, so that a smaller request may be served
    /// first.
    pub(super) async fn take_memory(&self) -> Result<(), StartFailure> {
        let give_up = Instant::now() + self.context.config.queue_wait;
        loop {
            if self.try_take_memory().await? {
                return Ok(());
            }
            self.pool.report_memory_wait(self.key, true);
            if Instant::now() >= give_up {
                let text = "all memory for instances is in use by instances with calls";
                return Err(StartFailure::NoCapacity(text.into()));
            }
            sleep_until(give_up.min(Instant::now() + MEMORY_PAUSE)).await;
            if !self.pool.is_start_needed() {
                return Err(StartFailure::Cancelled);
            }
        }
    }

    /// Memory that is free or about to be; `None` while all of it is in use.
    async fn claim_memory(&self) -> Result<Option<Grant>, StartFailure> {
        let memory = self.instance.version.spec.memory;
        match self.context.budget.claim(memory) {
            Claim::Granted(grant) => Ok(Some(grant)),
            Claim::Later { shortage, grant } => {
                if shortage > 0 && !self.evict_for(shortage) {
                    return Ok(None);
                }
                Ok(timeout(self.context.config.start_timeout, grant.granted()).await.ok().flatten())
            }
            Claim::Never => {
                let total = self.context.budget.total();
                let text =
                    format!("it needs {memory}, and instances of this VM have {total} in all");
                Err(StartFailure::NoCapacity(text))
            }
        }
    }

    /// Evicts for `shortage` bytes, all or nothing: no cell is removed for a start that gets no
    /// memory all the same. For a start that no call waits for, cells are evicted last: the next
    /// call that finds no instance needs them more.
    fn evict_for(&self, shortage: u64) -> bool {
        if !self.pool.has_waiting_calls() && self.pool.host.evict(shortage, &self.pool) {
            return true;
        }
        let cells = self.cells.spare_bytes().min(shortage);
        let instances = shortage - cells;
        if instances > 0 && !self.pool.host.evict(instances, &self.pool) {
            return false;
        }
        // A cell may have been taken meanwhile; then the next attempt gets the memory.
        cells == 0 || self.cells.release(cells) >= cells
    }
}
