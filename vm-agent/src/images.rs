//! Which images this VM's engine is known to have, and for which versions. One pull at a time per image,
//! whoever asks.

pub(crate) mod room;

use crate::engine::{Engine, EngineError, LocalImage};
use epsilon_api::{
    function::{ImageRef, Version},
    ids::{FunctionName, VersionId},
    vm::ImageRemoval,
};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// Versions that a VM reports to have the image of. It does so each second; a gateway uses them to choose
/// between VMs that are equal otherwise, and what was not used for that long is no loss.
const REPORTED: usize = 128;

/// One image: the lock is held by whoever fetches it.
type Entry = Arc<tokio::sync::Mutex<Option<LocalImage>>>;

#[derive(Debug, Default)]
pub(crate) struct Images {
    known: Mutex<HashMap<ImageRef, Entry>>,
    /// What was fetched or started; the last one first.
    recent: Mutex<VecDeque<(VersionId, ImageRef)>>,
}

impl Images {
    /// The version's image in the engine; fetched when it was never seen.
    pub(crate) async fn ensure(
        &self,
        engine: &dyn Engine,
        version: &Version,
    ) -> Result<LocalImage, EngineError> {
        let entry = Arc::clone(self.known.lock().entry(version.image.clone()).or_default());
        let mut local = entry.lock().await;
        if let Some(local) = &*local {
            self.used(version);
            return Ok(local.clone());
        }
        let found = engine.ensure_image(&version.image).await.inspect_err(|_| {
            self.doubt(&version.image); // nothing stays of what is not here
        })?;
        *local = Some(found.clone());
        self.used(version);
        Ok(found)
    }

    /// Takes the image off the engine, unless something uses it. Who fetches it meanwhile waits, and then looks again; who
    /// has just been told that it is here finds out when it makes a container, and fetches it once more.
    pub(crate) async fn remove(
        &self,
        engine: &dyn Engine,
        image: &ImageRef,
        is_used: impl Fn() -> bool,
    ) -> Result<ImageRemoval, EngineError> {
        let entry = Arc::clone(self.known.lock().entry(image.clone()).or_default());
        let mut local = entry.lock().await;
        if is_used() {
            return Ok(ImageRemoval::InUse);
        }
        *local = None;
        let removal = engine.remove_image(image).await?;
        if removal == ImageRemoval::Gone {
            self.lost(image);
        }
        Ok(removal)
    }

    fn used(&self, version: &Version) {
        let id = version.id();
        let mut recent = self.recent.lock();
        recent.retain(|(other, _)| *other != id);
        recent.push_front((id, version.image.clone()));
        while recent.len() > REPORTED {
            if let Some((_, image)) = recent.pop_back() {
                self.doubt(&image);
            }
        }
    }

    /// Versions whose image is here as far as is known, the one used last first.
    pub(crate) fn recent(&self) -> Vec<VersionId> {
        self.recent.lock().iter().map(|(id, _)| id.clone()).collect()
    }

    /// Images that were used here, the one used last first.
    pub(crate) fn by_use(&self) -> Vec<ImageRef> {
        self.recent.lock().iter().map(|(_, image)| image.clone()).collect()
    }

    /// It is looked for again before it is used again.
    pub(crate) fn doubt(&self, image: &ImageRef) {
        self.known.lock().remove(image);
    }

    /// The engine turned out not to have it any more.
    pub(crate) fn lost(&self, image: &ImageRef) {
        self.doubt(image);
        self.recent.lock().retain(|(_, other)| other != image);
    }

    /// The function is no more.
    pub(crate) fn forget_function(&self, function: &FunctionName) {
        self.recent.lock().retain(|(id, _)| id.function != *function);
    }
}
