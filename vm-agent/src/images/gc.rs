//! Garbage collection of images: when the disk is too full, images that can be pulled again are
//! removed, the least recently used first. Images that gateways report as unneeded are removed
//! elsewhere (`Images::remove`); this one removes what is needed now and then, on a VM whose disk
//! cannot hold everything.

use crate::{engine::EngineError, vm::LocalVm};
use epsilon_api::{chain::Chain, function::ImageRef, vm::ImageRemoval};
use tokio::time::{MissedTickBehavior, interval};

/// More is freed than the limit demands, so that not each run has to remove something.
const SPARE_PERCENT: u8 = 5;
/// Limit of removals in one run.
const AT_ONCE: usize = 64;

/// Runs until the agent shuts down.
pub(crate) async fn run(vm: &LocalVm) {
    let mut timer = interval(vm.config.disk_look);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_reported = false;
    loop {
        tokio::select! {
            biased;
            () = vm.closed.cancelled() => return,
            _ = timer.tick() => {}
        }
        let collected = tokio::select! {
            biased;
            () = vm.closed.cancelled() => return,
            // Each step of it may be cut; the next run does it again.
            collected = collect(vm) => collected,
        };
        match collected {
            Ok(Outcome::Freed { removed }) => {
                tracing::info!(
                    removed,
                    "Disk of the engine's images was too full; least recently used images were removed."
                );
                is_reported = false;
            }
            Ok(Outcome::StillFull { used_percent, removed }) if !is_reported => {
                is_reported = true;
                tracing::warn!(
                    used_percent,
                    removed,
                    limit = vm.config.disk_limit,
                    "Disk of the engine's images is too full, and no more images can be removed; free space on it."
                );
            }
            Ok(Outcome::StillFull { .. }) => {}
            Ok(Outcome::NotNeeded) => is_reported = false,
            Err(err) => {
                tracing::debug!(error = %Chain(&err), "Usage of the disk of the engine's images could not be read; the next run tries again.");
            }
        }
    }
}

/// Result of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The disk is within its limit, or its usage is unknown.
    NotNeeded,
    /// Images were removed, and the disk is within its limit.
    Freed { removed: usize },
    /// All that can be removed is removed.
    StillFull { used_percent: u8, removed: usize },
}

/// One run: measures the disk and removes images.
pub(crate) async fn collect(vm: &LocalVm) -> Result<Outcome, EngineError> {
    let limit = vm.config.disk_limit;
    let used = async || {
        let disk = vm.engine.disk().await?;
        if let Some(disk) = &disk {
            vm.metrics.disk.set(disk.free.get(), disk.size.get());
        }
        Ok(disk.map_or(0, |disk| disk.used_percent()))
    };
    let mut used_percent: u8 = used().await?;
    if used_percent <= limit {
        return Ok(Outcome::NotNeeded);
    }
    let enough = limit.saturating_sub(SPARE_PERCENT);
    let mut removed = 0;
    for image in in_order(vm.engine.pulled_images().await?, &vm.images.by_use()) {
        if used_percent <= enough || removed == AT_ONCE {
            return Ok(Outcome::Freed { removed });
        }
        if vm.remove_image(&image).await? == ImageRemoval::Gone {
            removed += 1;
            used_percent = used().await?;
        }
    }
    Ok(if used_percent <= limit {
        Outcome::Freed { removed }
    } else {
        Outcome::StillFull { used_percent, removed }
    })
}

/// The order of removal: first images that were not used since this agent started, then the least
/// recently used one. `used` has the last used one first.
fn in_order(mut images: Vec<ImageRef>, used: &[ImageRef]) -> Vec<ImageRef> {
    images.sort_by_cached_key(|image| {
        let rank = used.iter().position(|other| other.reference == image.reference);
        std::cmp::Reverse(rank.unwrap_or(usize::MAX))
    });
    images
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> ImageRef {
        ImageRef { reference: name.into(), digest: name.into() }
    }

    #[test]
    fn least_recently_used_image_is_removed_first() {
        let all = ["a", "b", "c", "d"].map(image).to_vec();
        let used = ["c", "gone", "a"].map(image);
        let order: Vec<_> = in_order(all, &used).into_iter().map(|one| one.reference).collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }
}
