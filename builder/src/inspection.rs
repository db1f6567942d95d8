//! What the code exports, as `inspect.js` of the runtime saw it in a container without network.
//!
//! The answer was written by a process that ran the developer's code, so it is hostile until proven
//! otherwise: its file is opened without following links, its size is capped, unknown fields are refused,
//! and every name in it is parsed again before it is used. Lies in it can only harm the liar.

use crate::{error, manifest::Node};
use epsilon_api::{build::BuildError, function::Signature};
use serde::Deserialize;
use std::path::Path;

/// What all entries of a project export. Empty for `runtime: container`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inspection {
    /// One per entry that was asked for.
    pub entries: Vec<Entry>,
}

/// One entry: a file that was loaded.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its path in the source.
    pub entry: String,
    /// Why it could not be loaded.
    pub error: Option<LoadError>,
    /// What it exports that can be called.
    pub exports: Vec<Export>,
    /// The project's own files that it reaches.
    pub files: Vec<String>,
    /// Places that load something that only a run can tell.
    pub dynamic: Vec<Dynamic>,
}

/// What the code threw while it was loaded.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadError {
    /// The error's text.
    pub message: String,
    /// Where it came from.
    pub stack: Option<String>,
}

/// One export that can be called.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// Its name, `default` for the default export.
    pub name: String,
    /// How the runtime would call it.
    pub signature: Signature,
    /// The settings beside it in the code.
    pub config: Option<Node>,
}

/// A `require` or `import` whose argument is computed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dynamic {
    /// The file.
    pub file: String,
    /// Its line, from 1.
    pub line: u32,
    /// The text there.
    pub text: String,
}

impl Inspection {
    /// Reads the file that `inspect.js` was told to write. Blocking, but short: the size is capped.
    ///
    /// # Errors
    /// `LOAD_FAILED` when there is no such file (the code ended the process) or it makes no sense.
    pub fn load(file: &Path) -> Result<Self, BuildError> {
        let _ = file;
        Err(error::load_failed("being written"))
    }

    /// The entry with this path.
    pub fn entry(&self, path: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.entry == path)
    }
}
