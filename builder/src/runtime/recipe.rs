//! What a runtime base is made of, by language: implemented in the language's folder, used by
//! [`RuntimeBase`](super::RuntimeBase) alone.

use super::{RuntimeContext, seed::Seed};
use crate::{
    cache::WorkDir,
    config::Config,
    engine::container::Container,
    image::{Launch, Layer},
    source::ContentDigest,
};
use epsilon_api::build::BuildError;
use futures_util::future::BoxFuture;
use std::{fmt, sync::Arc};

/// A program of ours that an image gets as a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Serves calls around a developer's code: part of every function's image.
    Wrapper,
    /// Helps to inspect code: part of the inspector's image alone.
    Inspector,
}

/// The constants of a base.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// The language in names of images: `epsilon/runtime-node`.
    pub(crate) name: &'static str,
    /// The language for people: `Node 24`.
    pub(crate) title: &'static str,
    /// The image of a public registry. Without a host: the engine's own settings choose the
    /// registry or mirror.
    pub(crate) public_image: &'static str,
    /// The setting that names the operator's image.
    pub(crate) setting: &'static str,
    /// What such an image has to have.
    pub(crate) needs: &'static str,
    /// How the containers of the language start.
    pub(crate) launch: Launch,
}

/// What the runtime base of one language is made of, and how.
pub(crate) trait Recipe: fmt::Debug + Send + Sync {
    /// Its constants.
    fn facts(&self) -> &'static Facts;

    /// The operator's own image, to be used instead of any other.
    fn operators<'a>(&self, config: &'a Config) -> Option<&'a str>;

    /// Text that identifies all that decides a base made from packages.
    fn packages_text(&self) -> String;

    /// Completes a base made from packages: a container whose file system is the base.
    fn complete<'a>(&'a self, seed: Seed<'a>) -> BoxFuture<'a, Result<Container, BuildError>>;

    /// Digest of a program's files and of how they are installed.
    fn digest(&self, program: Program) -> ContentDigest;

    /// Makes a program's layer in a container of `base`. It is the same for every base.
    fn layer<'a>(
        &'a self,
        program: Program,
        context: &'a RuntimeContext<'a>,
        base: &'a str,
        work: &'a Arc<WorkDir>,
    ) -> BoxFuture<'a, Result<Layer, BuildError>>;
}
