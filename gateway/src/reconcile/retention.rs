//! Removes versions beyond the newest of their function, and images that no version needs any more.
//! One gateway does it for all.
//!
//! ```text
//! a change of routes, or from time to time ─▶ prune versions ─▶ take images ─▶ remove from VMs ─▶ from builders
//!                                             └──────── store ───────┘          └ in use: retried later
//! ```
//! The store decides which images are not needed, and keeps a deployment from relying on an image
//! that is being removed. VMs know which images they use; builders know where they stored them.
//! Nothing here is on the path of a call or of a deployment.

use crate::{
    deploy::builders::Builders,
    fleet::Fleet,
    functions::{
        Functions,
        actor::{Actor, Rule},
        error::ChangeError,
    },
};
use epsilon_api::{chain::Chain, function::ImageRef, ids::GatewayId, vm::ImageRemoval};
use epsilon_store::{Change, Outcome, Store};
use futures_util::{StreamExt, future::join_all, stream::BoxStream};
use jiff::{SignedDuration, Timestamp};
use std::{num::NonZeroU32, sync::Arc, time::Duration};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

const ROLE: &str = "retention";
/// How long other gateways wait after a gateway died in a round. Longer than a round.
const LEASE: Duration = Duration::from_secs(120);
/// Longest round; the next one does the rest.
const ROUND: Duration = Duration::from_secs(90);
/// Longest interval of rounds without changes: images have a grace period that ends by itself.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);
/// Pause between rounds: each of several deployments in a row changes the routes.
const PAUSE: Duration = Duration::from_secs(1);
/// Images removed concurrently, and how many such batches a round has.
const BATCH_SIZE: u32 = 8;
const BATCHES: usize = 16;

/// What an operator wants to keep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    /// Newest versions of each function.
    pub(crate) versions: NonZeroU32,
    /// How long an image is stored after the last version that used it.
    pub(crate) grace: Duration,
}

/// The task that removes old versions and images.
#[derive(Debug)]
pub(crate) struct Retention {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) functions: Arc<Functions>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) builders: Arc<Builders>,
    pub(crate) me: GatewayId,
    pub(crate) keep: Keep,
}

impl Retention {
    /// Runs until it is dropped; an interrupted round is repeated by the next leader.
    pub(crate) async fn run(self) {
        let mut changes = self.store.changes();
        let mut rounds = interval(self.keep.grace.clamp(PAUSE, LONGEST_INTERVAL));
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Cancel-safe: the stream keeps its changes, the interval its time.
            tokio::select! {
                () = routes_changed(&mut changes) => {}
                _ = rounds.tick() => {}
            }
            match timeout(ROUND, self.round()).await {
                Ok(Ok(())) => {}
                Ok(Err(err)) => {
                    tracing::debug!(error = %Chain(&err), "Retention round failed: the store could not be queried; retrying later.");
                }
                Err(_) => {
                    tracing::warn!("Retention round took too long; the next one does the rest.");
                }
            }
            sleep(PAUSE).await;
        }
    }

    async fn round(&self) -> Result<(), ChangeError> {
        if !self.store.lead(&self.me, ROLE, LEASE, Timestamp::now()).await? {
            return Ok(());
        }
        self.functions.prune(&Actor::Gateway(Rule::Retention), self.keep.versions).await?;
        let grace = SignedDuration::try_from(self.keep.grace).unwrap_or(SignedDuration::MAX);
        let before = Timestamp::now().checked_sub(grace).unwrap_or(Timestamp::MIN);
        for _ in 0..BATCHES {
            let images = self.store.claim_unneeded_images(before, BATCH_SIZE).await?;
            if images.is_empty() {
                return Ok(());
            }
            let outcomes = images.into_iter().map(|image| self.remove(image));
            let outcomes = join_all(outcomes).await;
            self.store.record_removals(&outcomes, Timestamp::now()).await?;
        }
        Ok(())
    }

    /// The VMs first: they know whether the image is used.
    async fn remove(&self, image: ImageRef) -> (ImageRef, Outcome) {
        let members = self.fleet.members();
        let removals = members.iter().map(async |member| {
            let removal = member.vm.remove_image(image.clone()).await;
            // A VM that cannot be reached keeps its copy until it needs the disk space.
            removal.inspect_err(|err| {
                tracing::debug!(vm = %member.id, image = %image, error = %Chain(err), "VM could not remove an image; its copy stays.");
            })
        });
        let removals = join_all(removals).await;
        let in_use = removals.iter().filter(|one| matches!(one, Ok(ImageRemoval::InUse))).count();
        let outcome = match in_use {
            0 if self.builders.remove(&image).await => Outcome::Gone,
            some if some == removals.len() && some > 0 => Outcome::InUse,
            _ => Outcome::Unknown,
        };
        tracing::debug!(image = %image, ?outcome, "Image is not needed by any version; removal attempted.");
        (image, outcome)
    }
}

/// Waits for a change after which something may be removable.
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
