//! `epsilon.yaml` → what to deploy, strictly: unknown keys, keys given twice, values out of range and
//! things that do not work yet are errors that say where they are and what would be right.
//!
//! Not here: what the code exports ([`crate::plan`] brings both together) and anything that touches
//! containers.

mod ceilings;
mod tree;

pub use ceilings::Ceilings;
pub use tree::Node;

use crate::{error, source::Source};
use epsilon_api::{build::BuildError, function::Runtime, ids::ProjectName};

/// A project's own file, checked, with what follows from the source where the file is silent.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The project's name.
    pub project: ProjectName,
    /// What runs its functions.
    pub runtime: Runtime,
}

impl Manifest {
    /// Reads the manifest of a source; `folder` names the project when neither the manifest nor
    /// `package.json` does. Blocking, but short: the sizes are capped.
    ///
    /// # Errors
    /// `MANIFEST_INVALID`, `NO_FUNCTIONS`.
    pub fn read(
        source: &Source,
        folder: Option<&str>,
        ceilings: &Ceilings,
    ) -> Result<Self, BuildError> {
        let _ = (source, folder, ceilings);
        Err(error::manifest_invalid("being written"))
    }

    /// The name of the manifest's file, when there is one. It is no part of an image.
    pub fn file(&self) -> Option<&str> {
        None
    }

    /// The files to inspect, sorted, each once. Empty for `runtime: container`.
    pub fn entries(&self) -> Vec<String> {
        Vec::new()
    }
}
