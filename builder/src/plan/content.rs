//! What can matter to one function, as one digest. Too little would leave old code running, so the rule
//! errs on the other side: a file counts unless it is *known* to matter to other functions only.
//!
//! Known is: it is a module, another entry reaches it, this entry does not, and nothing in this entry's
//! files is loaded by a name that only a run can tell. So data files, workers and scripts that nobody
//! imports count for every function.

use super::Origin;
use crate::{
    inspection::{Entry, Inspection},
    manifest::{Manifest, is_module},
    source::{ContentDigest, FileKind, Hasher, Source, SourceFile},
};
use epsilon_api::{function::FunctionSpec, ids::FunctionName};
use std::collections::HashSet;

/// First of what is digested. Another rule needs another text, so that no image of the old rule is taken.
const RULE: &[u8] = b"epsilon function content 1";

/// Which files of the source count for a function.
#[derive(Debug)]
pub(super) enum Scope<'a> {
    /// None: its image exists already.
    Nothing,
    /// All.
    Everything,
    /// All but modules that only others reach.
    Reached { own: HashSet<&'a str>, others: HashSet<&'a str> },
}

impl<'a> Scope<'a> {
    /// What counts for a function of this entry.
    pub(super) fn of(entry: &'a Entry, inspection: &'a Inspection) -> Self {
        if !entry.dynamic.is_empty() {
            return Self::Everything;
        }
        let files = |entry: &'a Entry| entry.files.iter().chain([&entry.entry]).map(String::as_str);
        let others = inspection.entries.iter().filter(|other| other.entry != entry.entry);
        Self::Reached { own: files(entry).collect(), others: others.flat_map(files).collect() }
    }

    fn has(&self, file: &SourceFile) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Reached { own, others } => {
                let path = file.path.as_str();
                let module = is_module(path) && file.kind == FileKind::File;
                !module || own.contains(path) || !others.contains(path)
            }
        }
    }
}

/// The digest of name, settings, origin and all files in scope. The manifest's own file never counts:
/// what it says of this function is in the settings.
pub(super) fn digest(
    manifest: &Manifest,
    source: &Source,
    name: &FunctionName,
    spec: &FunctionSpec,
    origin: &Origin,
    scope: &Scope<'_>,
) -> ContentDigest {
    let (origin, detail) = match origin {
        Origin::Code => ("code", ""),
        Origin::Image(reference) => ("image", reference.as_str()),
        Origin::Dockerfile(path) => ("dockerfile", path.as_str()),
    };
    let spec = serde_json::to_vec(spec).expect("settings are plain values: they have a JSON form");
    let head = [RULE, name.as_str().as_bytes(), &spec, origin.as_bytes(), detail.as_bytes()];
    let hasher = head.into_iter().fold(Hasher::default(), Hasher::part);
    let files = source.files.iter().filter(|file| Some(file.path.as_str()) != manifest.file());
    files
        .filter(|file| scope.has(file))
        .fold(hasher, |hasher, file| file.digest_into(hasher))
        .finish()
}
