//! Publishing finished images: to this machine's engine, a registry, or a file. All take the same
//! set of images and return what an agent needs to run them.

pub(crate) mod blob;
mod export;
mod layer_cache;
pub(crate) mod layout;
mod local;
mod registry;

use crate::image::name::Name;
pub(crate) use export::Exports;
pub(crate) use layer_cache::LayerCache;
pub(crate) use layout::Layout;
pub(crate) use local::Local;
pub(crate) use registry::Remote;

use crate::{
    engine::{Engine, EngineImage},
    error,
    image::{Image, Layer},
};
use epsilon_api::{
    build::BuildError,
    chain::Chain,
    function::{ImageLayer, ImageRef, Parts},
};
use std::sync::Arc;

/// Images that share all their layers: the functions of one project.
#[derive(Clone, Debug)]
pub(crate) struct ImageSet {
    /// The image that they are based on; it is in the engine.
    pub(crate) base: Base,
    /// The layers on top of it, bottom first.
    pub(crate) layers: Vec<Layer>,
    pub(crate) images: Vec<(Image, Name)>,
}

impl ImageSet {
    /// The layers of its images in this machine's engine.
    fn parts(&self) -> Parts {
        let Base { reference, image } = &self.base;
        let layers = self.layers.iter();
        Parts {
            base: ImageRef { reference: reference.clone(), digest: image.id.clone() },
            layers: layers
                .map(|layer| ImageLayer { diff_id: layer.diff_id.clone(), blob: None })
                .collect(),
        }
    }
}

/// A published set of images.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    /// In the order of the set.
    pub(crate) images: Vec<ImageRef>,
    /// The layers of each image, if an agent can use them.
    pub(crate) parts: Option<Parts>,
}

/// A base image in the engine.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub(crate) reference: String,
    pub(crate) image: EngineImage,
}

impl Base {
    /// The image of this reference, which is known to be in the engine.
    pub(crate) async fn of(engine: &Engine, reference: &str) -> Result<Self, BuildError> {
        let image = engine.image(reference).await?.ok_or_else(|| {
            error::engine_failed(format!("the container engine lost the image `{reference}`"))
        })?;
        Ok(Self { reference: reference.to_owned(), image })
    }
}

/// Destination of images.
#[derive(Debug)]
pub(crate) enum Destination {
    /// This machine's engine; layers of functions are also cached for the agent.
    Engine(Arc<Local>, LayerCache),
    Registry(Box<Remote>),
    File(Layout),
}

impl Destination {
    /// Identifies the destination: an image in one does not exist in another. Empty for this
    /// machine's engine.
    pub(crate) fn identity(&self) -> &str {
        match self {
            Self::Engine(..) => "",
            Self::Registry(remote) => remote.name(),
            Self::File(_) => "file",
        }
    }

    /// Called after all images of a build were published.
    pub(crate) async fn finish(&self) -> Result<(), BuildError> {
        match self {
            Self::Engine(..) | Self::Registry(_) => Ok(()),
            Self::File(layout) => layout.write().await,
        }
    }

    /// Whether an image that was published before still exists.
    pub(crate) async fn has(&self, image: &ImageRef) -> Result<bool, BuildError> {
        match self {
            Self::Engine(local, _) => local.has(image).await,
            Self::Registry(remote) => remote.has(image).await,
            // A file is written anew by each build: its old content does not count.
            Self::File(_) => Ok(false),
        }
    }

    /// Publishes all images of a set.
    pub(crate) async fn publish(&self, image_set: &ImageSet) -> Result<Published, BuildError> {
        match self {
            Self::Engine(local, layer_cache) => {
                let images = local.put(image_set).await?;
                // Only an optimisation: layers missing in the cache are taken from the engine.
                if let Err(err) = layer_cache.put(&image_set.layers).await {
                    tracing::warn!(error = %Chain(&err), "Layers could not be cached for the agent; it will take them from the engine.");
                }
                Ok(Published { images, parts: Some(image_set.parts()) })
            }
            Self::Registry(remote) => remote.push(image_set).await,
            // Layers are not mounted out of a file; loading it brings whole images.
            Self::File(layout) => {
                Ok(Published { images: layout.add(image_set).await?, parts: None })
            }
        }
    }

    /// Removes an image that was published here.
    pub(crate) async fn remove(&self, image: &ImageRef) -> Result<(), BuildError> {
        match self {
            Self::Engine(local, _) => local.remove(image).await,
            Self::Registry(remote) => remote.remove(image).await,
            Self::File(_) => Ok(()),
        }
    }

    /// Publishes an image that the engine itself built or pulled, under this name.
    pub(crate) async fn publish_foreign(
        &self,
        image: &Base,
        name: &Name,
    ) -> Result<ImageRef, BuildError> {
        match self {
            Self::Engine(local, _) => local.adopt(image, name).await,
            Self::Registry(remote) => remote.push_foreign(image, name).await,
            Self::File(layout) => layout.add_foreign(image, name).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use epsilon_api::ids::{FunctionName, ProjectName};

    #[test]
    fn names_are_what_registries_allow() {
        for (project, function, want) in [
            ("shop", "checkOut", "epsilon/shop/checkout:0123456789ab"),
            ("My.Shop_2", "a__b", "epsilon/my-shop-2/a-b:0123456789ab"),
            ("9x", "A-_-", "epsilon/9x/a:0123456789ab"),
        ] {
            let project = ProjectName::parse(project).unwrap();
            let function = FunctionName::parse(function).unwrap();
            let name = Name::function(&project, &function, "sha256:0123456789abcdef");
            assert_eq!(name.to_string(), want);
        }
    }
}
