//! What is not kept: versions beyond the newest of their function, and images that no version needs any more. One
//! gateway does it for all.
//!
//! ```text
//! a change of what serves, or now and then ─▶ prune versions ─▶ take images ─▶ off every VM ─▶ out of the builder's place
//!                                             └──────── store ───────┘          └ in use: again later
//! ```
//! The store decides what is not needed, and keeps a deployment from counting on an image that leaves; VMs know what they
//! use; builders know where they put images. Nothing here is on the path of a call or of a deployment.

use crate::{deploy::builders::Builders, fleet::Fleet};
use epsilon_api::{chain::Chain, function::ImageRef, ids::GatewayId, vm::ImageRemoval};
use epsilon_store::{Change, Outcome, Store, StoreError};
use futures_util::{StreamExt, future::join_all, stream::BoxStream};
use jiff::{SignedDuration, Timestamp};
use std::{num::NonZeroU32, sync::Arc, time::Duration};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

const ROLE: &str = "retention";
/// How long the others wait after a gateway that died in a round. Longer than a round.
const LEASE: Duration = Duration::from_secs(120);
/// Longest round; what is left is done in the next one.
const ROUND: Duration = Duration::from_secs(90);
/// How often it is looked at least, where nothing tells of changes: images have a grace that ends by itself.
const LOOK: Duration = Duration::from_secs(60);
/// Deployments may come one after another; each of them changes what serves.
const PAUSE: Duration = Duration::from_secs(1);
/// Images that leave at once, and how many times that in one round.
const AT_ONCE: u32 = 8;
const TIMES: usize = 16;

/// What an operator wants to keep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    /// Newest versions of each function.
    pub(crate) versions: NonZeroU32,
    /// How long an image stays after the last version that had it.
    pub(crate) grace: Duration,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Retention {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) builders: Arc<Builders>,
    pub(crate) me: GatewayId,
    pub(crate) keep: Keep,
}

impl Retention {
    /// Runs until it is dropped; a round that is cut is done again by whoever leads next.
    pub(crate) async fn run(self) {
        let mut changes = self.store.changes();
        let mut look = interval(self.keep.grace.clamp(PAUSE, LOOK));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Nothing is lost by dropping either: the stream keeps its changes, the interval its time.
            tokio::select! {
                () = routes_changed(&mut changes) => {}
                _ = look.tick() => {}
            }
            match timeout(ROUND, self.round()).await {
                Ok(Ok(())) => {}
                Ok(Err(err)) => {
                    tracing::debug!(error = %Chain(&err), "The store does not say what may go.");
                }
                Err(_) => tracing::warn!("What may go was not all removed in time; it will be."),
            }
            sleep(PAUSE).await;
        }
    }

    async fn round(&self) -> Result<(), StoreError> {
        if !self.store.lead(&self.me, ROLE, LEASE, Timestamp::now()).await? {
            return Ok(());
        }
        let removed = self.store.prune(self.keep.versions.get(), Timestamp::now()).await?;
        for version in &removed {
            tracing::info!(%version, keep = self.keep.versions, "Version removed: newer ones are kept.");
        }
        let grace = SignedDuration::try_from(self.keep.grace).unwrap_or(SignedDuration::MAX);
        let before = Timestamp::now().checked_sub(grace).unwrap_or(Timestamp::MIN);
        for _ in 0..TIMES {
            let images = self.store.take_unneeded(before, AT_ONCE).await?;
            if images.is_empty() {
                return Ok(());
            }
            let outcomes = images.into_iter().map(|image| self.remove(image));
            let outcomes = join_all(outcomes).await;
            self.store.taken(&outcomes, Timestamp::now()).await?;
        }
        Ok(())
    }

    /// Off the VMs first: they know whether it is used.
    async fn remove(&self, image: ImageRef) -> (ImageRef, Outcome) {
        let members = self.fleet.members();
        let removals = members.iter().map(async |member| {
            let removal = member.vm.remove_image(image.clone()).await;
            // A VM that is away keeps its copy until it needs the room.
            removal.inspect_err(|err| {
                tracing::debug!(vm = %member.id, image = %image, error = %Chain(err), "A VM did not remove an image.");
            })
        });
        let removals = join_all(removals).await;
        let in_use = removals.iter().filter(|one| matches!(one, Ok(ImageRemoval::InUse))).count();
        let outcome = match in_use {
            0 if self.builders.remove(&image).await => Outcome::Gone,
            some if some == removals.len() && some > 0 => Outcome::InUse,
            _ => Outcome::Unknown,
        };
        tracing::debug!(image = %image, ?outcome, "No version needs this image.");
        (image, outcome)
    }
}

/// Waits for a change after which something may go.
async fn routes_changed(changes: &mut BoxStream<'static, Change>) {
    loop {
        match changes.next().await {
            Some(Change::Routes | Change::Resync) => return,
            Some(Change::Members | Change::Draining) => {}
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests;
