//! Where finished images go: this machine's engine, a registry, or a file. All take the same parcel and answer
//! with what an agent needs to run it.

pub(crate) mod blob;
mod export;
pub(crate) mod layout;
mod local;
mod registry;
mod shelf;

pub(crate) use export::Exports;
pub(crate) use layout::Layout;
pub(crate) use local::Local;
pub(crate) use registry::Remote;
pub(crate) use shelf::Shelf;

use crate::{
    engine::{Engine, EngineImage},
    error,
    image::{Image, Layer},
};
use epsilon_api::{
    build::BuildError,
    chain::Chain,
    function::{ImageLayer, ImageRef, Parts},
    ids::{FunctionName, ProjectName},
};
use std::{fmt, sync::Arc};

/// Images that share all their layers: the functions of one project.
#[derive(Clone, Debug)]
pub(crate) struct Parcel {
    /// What they are based on; the engine has it.
    pub(crate) base: Base,
    /// What they add to it, bottom first.
    pub(crate) layers: Vec<Layer>,
    pub(crate) images: Vec<(Image, Name)>,
}

impl Parcel {
    /// What its images come apart into in this machine's engine.
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

/// A parcel that has arrived.
#[derive(Clone, Debug)]
pub(crate) struct Shipped {
    /// In the parcel's order.
    pub(crate) images: Vec<ImageRef>,
    /// What each of them comes apart into, where an agent can make use of it.
    pub(crate) parts: Option<Parts>,
}

/// An image in the engine that others are based on.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub(crate) reference: String,
    pub(crate) image: EngineImage,
}

impl Base {
    /// The image behind this reference, which the engine is known to have.
    pub(crate) async fn of(engine: &Engine, reference: &str) -> Result<Self, BuildError> {
        let image = engine.image(reference).await?.ok_or_else(|| {
            error::engine_failed(format!("the container engine lost the image `{reference}`"))
        })?;
        Ok(Self { reference: reference.to_owned(), image })
    }
}

/// Where images go.
#[derive(Debug)]
pub(crate) enum Sink {
    /// The layers of functions are kept beside it.
    Engine(Arc<Local>, Shelf),
    Registry(Box<Remote>),
    File(Layout),
}

impl Sink {
    /// Tells one place from others: an image in one says nothing of another. Empty for this machine's engine.
    pub(crate) fn place(&self) -> &str {
        match self {
            Self::Engine(..) => "",
            Self::Registry(remote) => remote.name(),
            Self::File(_) => "file",
        }
    }

    /// All images of a build were shipped.
    pub(crate) async fn finish(&self) -> Result<(), BuildError> {
        match self {
            Self::Engine(..) | Self::Registry(_) => Ok(()),
            Self::File(layout) => layout.write().await,
        }
    }

    /// Whether an image that was shipped before is still there.
    pub(crate) async fn has(&self, image: &ImageRef) -> Result<bool, BuildError> {
        match self {
            Self::Engine(local, _) => local.has(image).await,
            Self::Registry(remote) => remote.has(image).await,
            // What a file held before is not looked at: each build writes all of it.
            Self::File(_) => Ok(false),
        }
    }

    /// Ships all images of a parcel.
    pub(crate) async fn ship(&self, parcel: &Parcel) -> Result<Shipped, BuildError> {
        match self {
            Self::Engine(local, shelf) => {
                let images = local.put(parcel).await?;
                // Only a shortcut: what is not on the shelf is in the engine.
                if let Err(err) = shelf.put(&parcel.layers).await {
                    tracing::warn!(error = %Chain(&err), "Layers could not be kept for the agent.");
                }
                Ok(Shipped { images, parts: Some(parcel.parts()) })
            }
            Self::Registry(remote) => remote.push(parcel).await,
            // Nobody mounts layers out of a file; whoever loads the images has them whole.
            Self::File(layout) => Ok(Shipped { images: layout.add(parcel).await?, parts: None }),
        }
    }

    /// Takes an image away that was put here.
    pub(crate) async fn remove(&self, image: &ImageRef) -> Result<(), BuildError> {
        match self {
            Self::Engine(local, _) => local.remove(image).await,
            Self::Registry(remote) => remote.remove(image).await,
            Self::File(_) => Ok(()),
        }
    }

    /// Ships an image that the engine itself built or pulled, under this name.
    pub(crate) async fn ship_foreign(
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

/// What our names in an engine begin with.
const NAMES: &str = "epsilon/";

/// What an image is called: `epsilon/PATH:TAG` in an engine, `PATH` behind the name of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    path: String,
    tag: String,
}

impl Name {
    /// A runtime base.
    pub(crate) fn runtime(tag: &str) -> Self {
        Self { path: "runtime-node".into(), tag: tag.to_owned() }
    }

    /// What projects are looked at in.
    pub(crate) fn inspector(tag: &str) -> Self {
        Self { path: "inspector-node".into(), tag: tag.to_owned() }
    }

    /// A function's image; its id gives the tag.
    pub(crate) fn function(project: &ProjectName, function: &FunctionName, id: &str) -> Self {
        let path = format!("{}/{}", part(project.as_str()), part(function.as_str()));
        Self { path, tag: id.trim_start_matches("sha256:").chars().take(12).collect() }
    }

    /// In the engine, without the tag.
    pub(crate) fn repository(&self) -> String {
        format!("{NAMES}{}", self.path)
    }

    /// In the registry with this name, without the tag.
    fn remote_repository(&self, registry: &str) -> String {
        format!("{registry}/{}", self.path)
    }
}

/// As the engine knows it.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{NAMES}{}:{}", self.path, self.tag)
    }
}

/// A name as one part of an image's: lower case, and separators only between letters and digits. Two
/// names may become the same; the tag, a digest over the function's name too, keeps them apart.
fn part(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_ascii_alphanumeric() {
            text.push(c.to_ascii_lowercase());
        } else if text.ends_with(|last: char| last.is_ascii_alphanumeric()) {
            text.push('-');
        }
    }
    text.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

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
