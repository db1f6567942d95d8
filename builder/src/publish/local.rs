//! Publishes to this machine's engine, by `POST /images/load`.
//!
//! The archive names all layers but contains only those that the engine lacks: engines with the
//! classic store find the others by their chain of digests. This is undocumented, so three methods
//! are tried, and the first that works is used from then on:
//!
//! ```text
//! Lacking: the archive without the base   20.10: ~115 ms
//!    └─▶ Whole: with the base, exported from the engine once
//!          └─▶ Commit: a container of the base, the layers unpacked into it, committed
//! ```

use super::{Base, Exports, ImageSet};
use crate::image::name::{self, Name};
use crate::{
    config::ImageTransfer,
    engine::{Engine, files},
    error,
    image::{Layer, archive},
    source::{ContentDigest, Hasher},
};
use epsilon_api::{build::BuildError, function::ImageRef};
use parking_lot::Mutex;
use std::{collections::HashSet, sync::Arc};

/// This machine's engine as a destination.
#[derive(Debug)]
pub(crate) struct Local {
    engine: Engine,
    exports: Arc<Exports>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The first method that is not known to fail.
    transfer: ImageTransfer,
    /// Chains of layers that this process loaded into the engine. Only a hint: images may be
    /// removed.
    known: HashSet<ContentDigest>,
}

impl Local {
    pub(crate) fn new(engine: Engine, exports: Arc<Exports>, transfer: ImageTransfer) -> Self {
        let state = Mutex::new(State { transfer, known: HashSet::new() });
        Self { engine, exports, state }
    }

    /// Whether the engine has this image.
    pub(crate) async fn has(&self, image: &ImageRef) -> Result<bool, BuildError> {
        let found = self.engine.image(&image.reference).await?;
        Ok(found.is_some_and(|found| found.id == image.digest))
    }

    /// Loads all images of a set into the engine.
    pub(crate) async fn put(&self, image_set: &ImageSet) -> Result<Vec<ImageRef>, BuildError> {
        let first = self.state.lock().transfer;
        let mut failed = None;
        for transfer in [ImageTransfer::Lacking, ImageTransfer::Whole, ImageTransfer::Commit] {
            if transfer < first {
                continue;
            }
            match self.load_by(transfer, image_set).await {
                Ok(images) => {
                    if transfer != first {
                        tracing::warn!(
                            ?transfer,
                            "Engine refused the faster ways to load images; using this one from now on."
                        );
                        self.state.lock().transfer = transfer;
                    }
                    return Ok(images);
                }
                // A full disk fails every method.
                Err(err) if err.code == "DISK_FULL" => return Err(err),
                // The first failure is the most informative.
                Err(err) => failed = failed.or(Some(err)),
            }
        }
        Err(failed.unwrap_or_else(|| {
            error::engine_failed("no method of loading images into the engine works")
        }))
    }

    /// Adds one of our names to an image in the engine.
    pub(crate) async fn adopt(&self, image: &Base, name: &Name) -> Result<ImageRef, BuildError> {
        self.engine.tag(&image.reference, &name.repository(), &name.tag).await?;
        Ok(ImageRef { reference: name.to_string(), digest: image.image.id.clone() })
    }

    /// Removes one of our names, if it still names this image. An image that a container uses keeps
    /// its name.
    pub(crate) async fn remove(&self, image: &ImageRef) -> Result<(), BuildError> {
        if image.reference.starts_with(name::NAMES) && self.has(image).await? {
            self.engine.remove_name(&image.reference).await?;
        }
        Ok(())
    }

    async fn load_by(
        &self,
        transfer: ImageTransfer,
        image_set: &ImageSet,
    ) -> Result<Vec<ImageRef>, BuildError> {
        match transfer {
            ImageTransfer::Lacking => {
                let chains = chains(image_set);
                let lacking: Vec<Layer> = {
                    let state = self.state.lock();
                    let pairs = image_set.layers.iter().zip(&chains);
                    pairs
                        .filter(|(_, c)| !state.known.contains(c))
                        .map(|(l, _)| l.clone())
                        .collect()
                };
                let mut loaded = self.load(image_set, &lacking).await;
                if loaded.is_err() && lacking.len() < image_set.layers.len() {
                    // Images were removed; what this process knew is outdated.
                    self.state.lock().known.clear();
                    loaded = self.load(image_set, &image_set.layers).await;
                }
                let images = loaded?;
                self.state.lock().known.extend(chains);
                Ok(images)
            }
            ImageTransfer::Whole => {
                let mut layers = self.exports.layers(&image_set.base).await?;
                layers.extend(image_set.layers.iter().cloned());
                self.load(image_set, &layers).await
            }
            ImageTransfer::Commit => {
                for (image, name) in &image_set.images {
                    let base = &image_set.base.reference;
                    self.engine.commit(base, &image_set.layers, image, &name.to_string()).await?;
                }
                self.look_up(image_set, false).await
            }
        }
    }

    async fn load(
        &self,
        image_set: &ImageSet,
        layers: &[Layer],
    ) -> Result<Vec<ImageRef>, BuildError> {
        let parts = archive::parts(&image_set.images, layers)
            .map_err(|err| error::file("packing an image", &err))?;
        self.engine.load(files(parts)).await?;
        self.look_up(image_set, true).await
    }

    /// The images as the engine has them; `exact` when their layers must be the composed ones.
    async fn look_up(
        &self,
        image_set: &ImageSet,
        exact: bool,
    ) -> Result<Vec<ImageRef>, BuildError> {
        let mut images = Vec::with_capacity(image_set.images.len());
        for (image, name) in &image_set.images {
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
}

/// Chain digests by which engines identify layers: a layer's own digest and all below it.
fn chains(image_set: &ImageSet) -> Vec<ContentDigest> {
    let below = Hasher::default().part(image_set.base.image.id.as_bytes());
    let grow = |chain: &mut Hasher, layer: &Layer| {
        *chain = chain.clone().part(layer.diff_id.as_bytes());
        Some(chain.clone().finish())
    };
    image_set.layers.iter().scan(below, grow).collect()
}
