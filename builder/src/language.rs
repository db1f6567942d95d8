//! What the builder has to know about a language: one trait of plain rules ([`Language`]), and one
//! of the tools that work in containers ([`Toolchain`](toolchain::Toolchain)). A new language is a
//! folder beside [`node`] that implements both, and the [`Recipe`] of its runtime base; the rest of
//! the builder names no language.
//!
//! ```text
//! manifest ─▶ Language: project's name, entries        rules: files in, answers out; nothing is run
//! plan     ─▶ Language: exports, hints, modules
//! job      ─▶ Toolchain: base, packages, command, inspection        tools: in temporary containers
//! runtime  ─▶ Recipe: what the base is made of
//! ```
//!
//! `runtime: container` has no language: its image exists, or its Dockerfile makes it.

pub mod node;
pub(crate) mod toolchain;

use crate::{
    inspection::{Entry, Export},
    runtime::recipe::Recipe,
    source::Source,
};
use epsilon_api::{
    build::BuildError,
    function::Runtime,
    ids::{FunctionName, ProjectName},
};
use std::fmt;
use toolchain::{Parts, Toolchain};

/// An export that becomes a function, under this name.
pub(crate) type Named<'a> = (FunctionName, &'a Export);

/// The rules of one language. Blocking, but short: what is read is capped.
pub(crate) trait Language: fmt::Debug + Send + Sync {
    /// What its runtime base is made of.
    fn recipe(&self) -> &'static dyn Recipe;

    /// The project's name in the language's own project file, if there is one.
    ///
    /// # Errors
    /// `MANIFEST_INVALID` when that file cannot be read.
    fn project_name(&self, source: &Source) -> Result<Option<String>, BuildError>;

    /// The entry of a project whose manifest does not name it.
    ///
    /// # Errors
    /// `NO_FUNCTIONS` with what to do, `MANIFEST_INVALID`.
    fn entry(&self, source: &Source) -> Result<String, BuildError>;

    /// Checks an entry that the manifest names. The error completes "`entry` …".
    fn check_entry(&self, entry: &str, source: &Source) -> Result<(), String>;

    /// The functions of an entry when the manifest names none, with notes about exports that are
    /// left out.
    ///
    /// # Errors
    /// `NO_FUNCTIONS`, `MANIFEST_INVALID`.
    fn functions<'a>(
        &self,
        project: &ProjectName,
        entry: &'a Entry,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Named<'a>>, BuildError>;

    /// The export that has the project's name without being called so.
    fn default_export(&self) -> &'static str;

    /// Whether this file is code: then it counts for an export only if the export reaches it, or
    /// none does. Everything else counts for every function.
    fn is_module(&self, path: &str) -> bool;

    /// Whether this file stays out of images, because it may hold credentials of the build.
    fn is_left_out(&self, path: &str) -> bool;

    /// A hint for the error that an entry threw while it was loaded, if its text has a known cause.
    fn load_hint(&self, error_text: &str, entry: &str) -> Option<String>;

    /// A better hint for a plan's error, from the project's files.
    fn plan_hint(&self, err: &BuildError, source: &Source) -> Option<String>;
}

/// All languages.
pub(crate) const ALL: [&dyn Language; 1] = [&node::Node];

/// The language of a runtime; none for `container`.
pub(crate) fn of(runtime: Runtime) -> Option<&'static dyn Language> {
    match runtime {
        Runtime::Node => Some(&node::Node),
        Runtime::Container => None,
    }
}

/// The project's name in the first language's project file that has one, whatever the runtime.
pub(crate) fn project_name(source: &Source) -> Result<Option<String>, BuildError> {
    for language in ALL {
        if let Some(name) = language.project_name(source)? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The tools of all languages.
#[derive(Debug)]
pub(crate) struct Toolchains {
    node: node::Tools,
}

impl Toolchains {
    pub(crate) fn new(parts: Parts<'_>) -> Self {
        Self { node: node::Tools::new(parts) }
    }

    /// The tools of a runtime's language; none for `container`.
    pub(crate) fn of(&self, runtime: Runtime) -> Option<&dyn Toolchain> {
        match runtime {
            Runtime::Node => Some(&self.node),
            Runtime::Container => None,
        }
    }
}
