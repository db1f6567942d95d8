//! This machine's engine as a place for images, by `POST /images/load`.
//!
//! The archive names all layers but holds only those that the engine lacks: engines with the classic
//! store take the others by their chain of digests. That is documented nowhere, so three ways are tried,
//! and the first that works is used from then on:
//!
//! ```text
//! Lacking: the archive without the base   20.10: ~115 ms
//!    └─▶ Whole: with the base, exported from the engine once
//!          └─▶ Commit: a container of the base, the layers unpacked into it, committed
//! ```

use super::{Base, Exports, Name, Parcel};
use crate::{
    config::Way,
    engine::{Engine, files},
    error,
    image::{Layer, archive},
    source::{ContentDigest, Hasher},
};
use epsilon_api::{build::BuildError, function::ImageRef};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

/// The engine's images.
#[derive(Debug)]
pub(crate) struct Local {
    engine: Engine,
    exports: Arc<Exports>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The first way that is not known to fail.
    way: Way,
    /// Chains of layers that this process put into the engine. Only a hint: images may be removed.
    known: HashSet<ContentDigest>,
}

impl Local {
    pub(crate) fn new(engine: Engine, exports: Arc<Exports>, way: Way) -> Self {
        let state = Mutex::new(State { way, known: HashSet::new() });
        Self { engine, exports, state }
    }

    /// Whether the engine has this image.
    pub(super) async fn has(&self, image: &ImageRef) -> Result<bool, BuildError> {
        let found = self.engine.image(&image.reference).await?;
        Ok(found.is_some_and(|found| found.id == image.digest))
    }

    /// Puts all images of a parcel into the engine.
    pub(crate) async fn put(&self, parcel: &Parcel) -> Result<Vec<ImageRef>, BuildError> {
        let first = self.state().way;
        let mut failed = None;
        for way in [Way::Lacking, Way::Whole, Way::Commit] {
            if way < first {
                continue;
            }
            match self.put_by(way, parcel).await {
                Ok(images) => {
                    if way != first {
                        tracing::warn!(?way, "The engine takes images only in this way.");
                        self.state().way = way;
                    }
                    return Ok(images);
                }
                // A full disk is full for every way.
                Err(err) if err.code == "DISK_FULL" => return Err(err),
                // The first failure is the one that says most.
                Err(err) => failed = failed.or(Some(err)),
            }
        }
        Err(failed.unwrap_or_else(|| error::engine_failed("no way into the engine is left")))
    }

    /// Gives an image that is in the engine one of our names.
    pub(super) async fn adopt(&self, image: &Base, name: &Name) -> Result<ImageRef, BuildError> {
        self.engine.tag(&image.reference, &name.repository(), &name.tag).await?;
        Ok(ImageRef { reference: name.to_string(), digest: image.image.id.clone() })
    }

    /// Takes one of our names off, as long as it stands for this image. An image that a container uses keeps its name.
    pub(super) async fn remove(&self, image: &ImageRef) -> Result<(), BuildError> {
        if image.reference.starts_with(super::NAMES) && self.has(image).await? {
            self.engine.remove_name(&image.reference).await?;
        }
        Ok(())
    }

    async fn put_by(&self, way: Way, parcel: &Parcel) -> Result<Vec<ImageRef>, BuildError> {
        match way {
            Way::Lacking => {
                let chains = chains(parcel);
                let lacking: Vec<Layer> = {
                    let state = self.state();
                    let pairs = parcel.layers.iter().zip(&chains);
                    pairs
                        .filter(|(_, c)| !state.known.contains(c))
                        .map(|(l, _)| l.clone())
                        .collect()
                };
                let mut loaded = self.load(parcel, &lacking).await;
                if loaded.is_err() && lacking.len() < parcel.layers.len() {
                    // Someone removed images; what this process knew is no longer so.
                    self.state().known.clear();
                    loaded = self.load(parcel, &parcel.layers).await;
                }
                let images = loaded?;
                self.state().known.extend(chains);
                Ok(images)
            }
            Way::Whole => {
                let mut layers = self.exports.layers(&parcel.base).await?;
                layers.extend(parcel.layers.iter().cloned());
                self.load(parcel, &layers).await
            }
            Way::Commit => {
                for (image, name) in &parcel.images {
                    let base = &parcel.base.reference;
                    self.engine.commit(base, &parcel.layers, image, &name.to_string()).await?;
                }
                self.look_up(parcel, false).await
            }
        }
    }

    async fn load(&self, parcel: &Parcel, layers: &[Layer]) -> Result<Vec<ImageRef>, BuildError> {
        let parts = archive::parts(&parcel.images, layers)
            .map_err(|err| error::file("packing an image", &err))?;
        self.engine.load(files(parts)).await?;
        self.look_up(parcel, true).await
    }

    /// The images as the engine has them; `exact` when their layers have to be the ones we composed.
    async fn look_up(&self, parcel: &Parcel, exact: bool) -> Result<Vec<ImageRef>, BuildError> {
        let mut images = Vec::with_capacity(parcel.images.len());
        for (image, name) in &parcel.images {
            let reference = name.to_string();
            let found = self.engine.image(&reference).await?;
            let is_whole = |diff_ids: &[String]| !exact || diff_ids == image.diff_ids;
            match found.filter(|found| is_whole(&found.diff_ids)) {
                Some(found) => images.push(ImageRef { reference, digest: found.id }),
                None => {
                    return Err(error::engine_failed("the container engine did not take an image"));
                }
            }
        }
        Ok(images)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What engines know a layer by: its own digest and all below it.
fn chains(parcel: &Parcel) -> Vec<ContentDigest> {
    let below = Hasher::default().part(parcel.base.image.id.as_bytes());
    let grow = |chain: &mut Hasher, layer: &Layer| {
        *chain = chain.clone().part(layer.diff_id.as_bytes());
        Some(chain.clone().finish())
    };
    parcel.layers.iter().scan(below, grow).collect()
}
