//! Manifest, source and inspection → the functions to build: pure, the last step before images.
//!
//! Which functions: those that `epsilon.yaml` names, else every export of the entry; a default export
//! takes the project's name. An export whose name cannot be a function's is left out with a note.

use crate::{
    error,
    inspection::Inspection,
    manifest::Manifest,
    source::{ContentDigest, Source},
};
use epsilon_api::{build::BuildError, function::FunctionSpec, ids::FunctionName};

/// What is to be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The functions, by name.
    pub functions: Vec<FunctionPlan>,
    /// What the developer should know, one line each: exports that are not deployed, and why.
    pub notes: Vec<String>,
}

/// One function to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionPlan {
    /// Its name.
    pub name: FunctionName,
    /// Its settings, complete and checked.
    pub spec: FunctionSpec,
    /// What its image is made of.
    pub origin: Origin,
    /// Of the settings and of all content of the source that can matter to this function. As long as it
    /// (and the runtime's and the dependencies' digest) stays the same, so does the image.
    pub content: ContentDigest,
}

/// What an image is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The runtime base and the project's code.
    Code,
    /// An image that exists: any reference. Two plans may name the same.
    Image(String),
    /// The project built with this Dockerfile, a path in the source.
    Dockerfile(String),
}

/// Decides what to build. `only` keeps these functions; empty keeps all.
///
/// # Errors
/// `LOAD_FAILED`, `NO_FUNCTIONS`, `EXPORT_NOT_FOUND`, `FUNCTION_NOT_FOUND`, `MANIFEST_INVALID`.
pub fn plan(
    manifest: &Manifest,
    source: &Source,
    inspection: &Inspection,
    only: &[FunctionName],
) -> Result<Plan, BuildError> {
    let _ = (manifest, source, inspection, only);
    Err(error::no_functions("being written"))
}
