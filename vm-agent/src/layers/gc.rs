//! Keeps unpacked layers within `vm_agent.layers_size`: beyond it, unmounted layers are removed,
//! the least recently used first. Runs on a timer, and at once when a new layer exceeds the size.
//! On a full disk the store shrinks to half: what can be fetched again must not keep out what is
//! needed.

use super::Layers;
use crate::vm::LocalVm;
use epsilon_api::chain::Chain;
use std::sync::Arc;
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

/// Runs until the agent shuts down.
pub(crate) async fn run(vm: &LocalVm) {
    let mut timer = interval(vm.config.disk_look);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // All of them may be dropped: a token, a stored notification, a timer.
            biased;
            () = vm.closed.cancelled() => break,
            () = vm.layers.over_size.notified() => {}
            _ = timer.tick() => {}
        }
        tokio::select! {
            biased;
            () = vm.closed.cancelled() => break,
            // Each step of it may be cut; the next run does it again.
            () = vm.layers.collect() => {}
        }
    }
    vm.layers.flush().await;
}

impl Layers {
    /// One run: makes new layers durable, and removes those beyond the size.
    pub(crate) async fn collect(&self) {
        self.flush().await;
        self.shrink(self.size).await;
    }

    /// Removes unleased layers, the least recently used first, until the store takes at most `to`
    /// bytes. Returns whether any was removed.
    pub(super) async fn shrink(&self, to: u64) -> bool {
        let mut removed = 0_u64;
        while self.store.bytes() > to {
            let Some(name) = self.store.oldest() else {
                tracing::debug!(held = self.store.bytes(), "All layers are in use.");
                break;
            };
            let work = async {
                let store = Arc::clone(&self.store);
                let name = name.clone();
                spawn_blocking(move || store.remove(&name)).await.ok().flatten()
            };
            // No fetch of it runs meanwhile. If it was leased before, nothing is removed, and the
            // next one is tried.
            match self.in_progress.exclusive(&name, work).await {
                Some(_) => removed += 1,
                None if self.store.oldest().as_ref() == Some(&name) => break, // the disk refuses
                None => {}
            }
        }
        if removed > 0 {
            tracing::info!(
                removed,
                held = self.store.bytes(),
                "Unused code layers were removed to free disk space."
            );
        }
        self.counts.holds(self.store.bytes());
        removed > 0
    }

    /// Makes the layers durable, so that the next agent finds them.
    async fn flush(&self) {
        let store = Arc::clone(&self.store);
        match spawn_blocking(move || store.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(err)) => {
                tracing::warn!(error = %Chain(&err), "Code layers could not be flushed to disk; trying again in the next round.");
            }
            Err(err) => {
                tracing::error!(error = %Chain(&err), "Task that flushes code layers to disk panicked (a bug).");
            }
        }
    }
}
