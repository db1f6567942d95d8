//! Keeps unpacked layers within `vm_agent.layers_size`: beyond it, those that nobody has mounted go, the one whose use is
//! the longest ago first. Run on a timer, and at once when a layer came that is one too many. A disk that has no room for
//! the next one makes half of them go: what can be fetched again is not to keep out what is needed.

use super::Layers;
use crate::vm::LocalVm;
use std::sync::Arc;
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

/// Runs until the agent ends.
pub(crate) async fn keep(vm: &LocalVm) {
    let mut look = interval(vm.config.disk_look);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // All of them may be dropped: a token, a note that is kept, a timer.
            biased;
            () = vm.closed.cancelled() => break,
            () = vm.layers.is_full.notified() => {}
            _ = look.tick() => {}
        }
        tokio::select! {
            biased;
            () = vm.closed.cancelled() => break,
            // Each step of it may be cut; the next look does it again.
            () = vm.layers.collect() => {}
        }
    }
    vm.layers.settle().await;
}

impl Layers {
    /// One look: what came is made to last, and what is too much goes.
    pub(crate) async fn collect(&self) {
        self.settle().await;
        self.shrink(self.size).await;
    }

    /// Removes what nobody holds, the oldest first, until all of it takes no more than that. Tells whether something went.
    pub(super) async fn shrink(&self, to: u64) -> bool {
        let mut removed = 0_u64;
        while self.stock.bytes() > to {
            let Some(name) = self.stock.oldest() else {
                tracing::debug!(held = self.stock.bytes(), "All layers are in use.");
                break;
            };
            let work = async {
                let (stock, name) = (Arc::clone(&self.stock), name.clone());
                spawn_blocking(move || stock.remove(&name)).await.ok().flatten()
            };
            // Nobody brings it meanwhile. Who holds it by now has it; then nothing is removed, and the next one is looked for.
            match self.at_work.alone(&name, work).await {
                Some(_) => removed += 1,
                None if self.stock.oldest().as_ref() == Some(&name) => break, // the disk refuses
                None => {}
            }
        }
        if removed > 0 {
            tracing::info!(removed, held = self.stock.bytes(), "Code layers made room.");
        }
        self.counts.holds(self.stock.bytes());
        removed > 0
    }

    /// Makes sure that what is here is found by the next agent.
    async fn settle(&self) {
        let stock = Arc::clone(&self.stock);
        match spawn_blocking(move || stock.settle()).await {
            Ok(Ok(())) => {}
            Ok(Err(err)) => tracing::warn!(%err, "Code layers could not be made to last."),
            Err(err) => tracing::error!(%err, "A bug: code layers could not be made to last."),
        }
    }
}
