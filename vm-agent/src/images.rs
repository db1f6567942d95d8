//! The images that this VM's engine is known to have, and the versions that use them. One pull at a
//! time per image, for all callers; those that wait for a pull that fails get the same error, so
//! that a registry that hangs costs one wait.

pub(crate) mod gc;

use crate::engine::{Engine, EngineError, LocalImage};
use epsilon_api::{
    function::{ImageRef, Version},
    ids::{FunctionName, VersionId},
    vm::ImageRemoval,
};
use epsilon_fleet_link::single_flight::SingleFlight;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};

/// Limit of versions that a VM reports to have the image of. It reports each second; a gateway uses
/// the list to choose between VMs that are equal otherwise, so the least recently used ones can be
/// left out.
const REPORTED: usize = 128;

#[derive(Debug, Default)]
pub(crate) struct Images {
    known: Mutex<HashMap<ImageRef, LocalImage>>,
    /// Pulls and removals: one at a time for each image.
    in_progress: SingleFlight<ImageRef, EngineError>,
    /// Versions that were pulled or started; the last used one first.
    recent: Mutex<VecDeque<(VersionId, ImageRef)>>,
}

impl Images {
    /// The version's image in the engine; pulled when it was never seen.
    pub(crate) async fn ensure(
        &self,
        engine: &dyn Engine,
        version: &Version,
    ) -> Result<LocalImage, EngineError> {
        let found = self.ensure_image(engine, &version.image).await?;
        self.used(version);
        Ok(found)
    }

    /// The same for an image that belongs to no version: a runtime base.
    pub(crate) async fn ensure_image(
        &self,
        engine: &dyn Engine,
        image: &ImageRef,
    ) -> Result<LocalImage, EngineError> {
        let there = || self.known.lock().get(image).cloned();
        let pull = async {
            let found = engine.ensure_image(image).await?;
            self.known.lock().insert(image.clone(), found.clone());
            Ok(found)
        };
        match there() {
            Some(found) => Ok(found),
            None => self.in_progress.ensure(image, there, pull).await.map_err(EngineError::Shared),
        }
    }

    /// Removes the image from the engine, unless something uses it. A pull meanwhile waits, and
    /// then looks again; a start that just got the image finds out when it creates a container, and
    /// pulls it once more.
    pub(crate) async fn remove(
        &self,
        engine: &dyn Engine,
        image: &ImageRef,
        is_used: impl Fn() -> bool,
    ) -> Result<ImageRemoval, EngineError> {
        let work = async {
            if is_used() {
                return Ok(ImageRemoval::InUse);
            }
            self.invalidate(image);
            let removal = engine.remove_image(image).await?;
            if removal == ImageRemoval::Gone {
                self.mark_removed(image);
            }
            Ok(removal)
        };
        self.in_progress.exclusive(image, work).await
    }

    /// Records that what the version's instances are made of is here: its image, or base and
    /// layers.
    pub(crate) fn used(&self, version: &Version) {
        let id = version.id();
        let mut recent = self.recent.lock();
        recent.retain(|(other, _)| *other != id);
        recent.push_front((id, version.image.clone()));
        while recent.len() > REPORTED {
            if let Some((_, image)) = recent.pop_back() {
                self.invalidate(&image);
            }
        }
    }

    /// Versions whose image is here as far as is known, the last used one first.
    pub(crate) fn recent(&self) -> Vec<VersionId> {
        self.recent.lock().iter().map(|(id, _)| id.clone()).collect()
    }

    /// Images that were used here, the last used one first.
    pub(crate) fn by_use(&self) -> Vec<ImageRef> {
        self.recent.lock().iter().map(|(_, image)| image.clone()).collect()
    }

    /// Forgets that the image is here: the next use looks for it again.
    pub(crate) fn invalidate(&self, image: &ImageRef) {
        self.known.lock().remove(image);
    }

    /// Records that the engine does not have the image any more.
    pub(crate) fn mark_removed(&self, image: &ImageRef) {
        self.invalidate(image);
        self.recent.lock().retain(|(_, other)| other != image);
    }

    /// The function was deleted.
    pub(crate) fn forget_function(&self, function: &FunctionName) {
        self.recent.lock().retain(|(id, _)| id.function != *function);
    }
}
