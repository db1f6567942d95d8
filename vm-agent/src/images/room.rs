//! Keeps the disk from filling with images: when it is too full, images that can be pulled again go, the one that was
//! not used for longest first. Images that gateways say are not needed go without this (`Images::remove`); here goes
//! what is needed now and then, on a VM that has no room for everything.

use crate::{engine::EngineError, vm::LocalVm};
use epsilon_api::{chain::Chain, function::ImageRef, vm::ImageRemoval};
use tokio::time::{MissedTickBehavior, interval};

/// Room is made for more than the next image, so that not each look has to.
const SPARE_PERCENT: u8 = 5;
/// Removals of one look.
const AT_ONCE: usize = 64;

/// Runs until the agent ends.
pub(crate) async fn keep(vm: &LocalVm) {
    let mut look = interval(vm.config.disk_look);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_told = false;
    loop {
        tokio::select! {
            biased;
            () = vm.closed.cancelled() => return,
            _ = look.tick() => {}
        }
        let made = tokio::select! {
            biased;
            () = vm.closed.cancelled() => return,
            // Each step of it may be cut; the next look does it again.
            made = make(vm) => made,
        };
        match made {
            Ok(Room::Made { removed }) => {
                tracing::info!(
                    removed,
                    "The disk was too full; images that were not used for long are gone."
                );
                is_told = false;
            }
            Ok(Room::TooLittle { used_percent, removed }) if !is_told => {
                is_told = true;
                tracing::warn!(
                    used_percent,
                    removed,
                    limit = vm.config.disk_limit,
                    "The disk is too full, and not because of images that can be pulled again."
                );
            }
            Ok(Room::TooLittle { .. }) => {}
            Ok(Room::Enough) => is_told = false,
            Err(err) => tracing::debug!(cause = %Chain(&err), "The disk was not looked at."),
        }
    }
}

/// What a look came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// There is room, or nobody can see it from here.
    Enough,
    /// There is room again.
    Made { removed: usize },
    /// All that may go is gone.
    TooLittle { used_percent: u8, removed: usize },
}

/// One look.
pub(crate) async fn make(vm: &LocalVm) -> Result<Room, EngineError> {
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
        return Ok(Room::Enough);
    }
    let enough = limit.saturating_sub(SPARE_PERCENT);
    let mut removed = 0;
    for image in in_order(vm.engine.pulled_images().await?, &vm.images.by_use()) {
        if used_percent <= enough || removed == AT_ONCE {
            return Ok(Room::Made { removed });
        }
        if vm.remove_image(&image).await? == ImageRemoval::Gone {
            removed += 1;
            used_percent = used().await?;
        }
    }
    Ok(if used_percent <= limit {
        Room::Made { removed }
    } else {
        Room::TooLittle { used_percent, removed }
    })
}

/// The images as they go: first those that nobody has used since this agent started, then the one whose use is the
/// longest ago. `used` has the last one first.
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
    fn the_one_that_was_not_used_for_longest_goes_first() {
        let all = ["a", "b", "c", "d"].map(image).to_vec();
        let used = ["c", "gone", "a"].map(image);
        let order: Vec<_> = in_order(all, &used).into_iter().map(|one| one.reference).collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }
}
