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

use super::{Base, Exports, Parcel};
use crate::image::name::Name;
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
    way: Way,
    /// Chains of layers that this process loaded into the engine. Only a hint: images may be
    /// removed.
    known: HashSet<ContentDigest>,
}

impl Local {
    pub(crate) fn new(engine: Engine, exports: Arc<Exports>, way: Way) -> Self {
        let state = Mutex::new(State { way, known: HashSet::new() });
        Self { engine, exports, state }
    }

    /// Whether the engine has this image.
    pub(crate) async fn has(&self, image: &ImageRef) -> Result<bool, BuildError> {
        let found = self.engine.image(&image.reference).await?;
        Ok(found.is_some_and(|found| found.id == image.digest))
    }

    /// Loads all images of a set into the engine.
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
                        tracing::warn!(
                            ?way,
                            "Engine accepts images only by this method; using it from now on."
                        );
                        self.state().way = way;
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
                    // Images were removed; what this process knew is outdated.
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

    /// The images as the engine has them; `exact` when their layers must be the composed ones.
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

/// Chain digests by which engines identify layers: a layer's own digest and all below it.
fn chains(parcel: &Parcel) -> Vec<ContentDigest> {
    let below = Hasher::default().part(parcel.base.image.id.as_bytes());
    let grow = |chain: &mut Hasher, layer: &Layer| {
        *chain = chain.clone().part(layer.diff_id.as_bytes());
        Some(chain.clone().finish())
    };
    parcel.layers.iter().scan(below, grow).collect()
}
