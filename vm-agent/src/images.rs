//! Which images this VM's engine is known to have. One pull at a time per image, whoever asks.

use crate::engine::{Engine, EngineError, LocalImage};
use epsilon_api::function::ImageRef;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};

/// One image: the lock is held by whoever fetches it.
type Entry = Arc<tokio::sync::Mutex<Option<LocalImage>>>;

#[derive(Debug, Default)]
pub(crate) struct Images {
    known: Mutex<HashMap<ImageRef, Entry>>,
}

impl Images {
    /// The image in the engine; fetched when it was never seen.
    pub(crate) async fn ensure(
        &self,
        engine: &dyn Engine,
        image: &ImageRef,
    ) -> Result<LocalImage, EngineError> {
        let entry = Arc::clone(self.known.lock().entry(image.clone()).or_default());
        let mut local = entry.lock().await;
        if let Some(local) = &*local {
            return Ok(local.clone());
        }
        let found = engine.ensure_image(image).await?;
        *local = Some(found.clone());
        Ok(found)
    }

    /// The engine turned out not to have it any more.
    pub(crate) fn forget(&self, image: &ImageRef) {
        self.known.lock().remove(image);
    }
}
