//! Digest of everything that can matter to one function. Too little would leave old code running,
//! so the rule errs on the other side: a file counts unless it is *known* to matter to other
//! functions only.
//!
//! That is known when the file is a module, another export reaches it, this export does not, and no
//! file of this entry loads a module whose name is known at run time only. So data files, workers
//! and scripts that no module imports count for every function. An export reaches what its entry
//! reaches, unless a bundler's module graph is more precise.

use crate::{
    inspection::{Entry, Export, Inspection, Reach},
    language::Language,
    manifest::{Manifest, origin::Origin},
    source::{ContentDigest, FileKind, Hasher, Source, SourceFile},
};
use epsilon_api::{function::FunctionSpec, ids::FunctionName};
use std::collections::HashSet;

/// First part of the digest. A changed rule needs a new text, so that images of the old rule are
/// not reused.
const RULE: &[u8] = b"epsilon function content 2";

/// The files of the source that count for a function.
#[derive(Debug)]
pub(super) enum Scope<'a> {
    /// None: its image exists already.
    Nothing,
    /// All.
    Everything,
    /// All except modules that only others reach.
    Reached {
        language: &'a dyn Language,
        own: HashSet<&'a str>,
        others: &'a HashSet<&'a str>,
        code: &'a str,
    },
}

/// All files that any export reaches.
pub(super) fn reached(inspection: &Inspection) -> HashSet<&str> {
    let files = |entry: &'_ Entry| entry.files.len();
    let mut all = HashSet::with_capacity(inspection.entries.iter().map(files).sum());
    for entry in &inspection.entries {
        all.extend(entry.files.iter().chain([&entry.entry]).map(String::as_str));
        let reaches = entry.exports.iter().filter_map(|export| export.reach.as_ref());
        all.extend(reaches.flat_map(|reach| &reach.files).map(String::as_str));
    }
    all
}

/// The files that count for one function, by index in the source's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted(Vec<bool>);

impl Counted {
    /// Whether the file at this index counts.
    pub fn has(&self, place: usize) -> bool {
        self.0.get(place).copied().unwrap_or_default()
    }
}

impl<'a> Scope<'a> {
    /// The scope of a function. `others` are all files that any export reaches.
    pub(super) fn of(
        language: &'a dyn Language,
        entry: &'a Entry,
        export: &'a Export,
        others: &'a HashSet<&'a str>,
    ) -> Self {
        if !entry.dynamic.is_empty() {
            return Self::Everything;
        }
        let (files, code) = match &export.reach {
            Some(Reach { files, code }) => (files, code.as_str()),
            None => (&entry.files, ""),
        };
        let own = files.iter().chain([&entry.entry]).map(String::as_str).collect();
        Self::Reached { language, own, others, code }
    }

    fn has(&self, file: &SourceFile) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Reached { language, own, others, code: _ } => {
                let path = file.path.as_str();
                let module = language.is_module(path) && file.kind == FileKind::File;
                !module || own.contains(path) || !others.contains(path)
            }
        }
    }
}

/// The digest of name, settings, origin and all files in scope. The manifest's own file never
/// counts: its content for this function is in the settings.
pub(super) fn digest(
    manifest: &Manifest,
    source: &Source,
    name: &FunctionName,
    spec: &FunctionSpec,
    origin: &Origin,
    scope: &Scope<'_>,
) -> (ContentDigest, Counted) {
    let (origin, detail) = match origin {
        Origin::Code => ("code", ""),
        Origin::Image(reference) => ("image", reference.as_str()),
        Origin::Dockerfile(path) => ("dockerfile", path.as_str()),
    };
    let spec = serde_json::to_vec(spec).expect("settings are plain values: they have a JSON form");
    let code = match scope {
        Scope::Reached { code, .. } => code,
        Scope::Nothing | Scope::Everything => "",
    };
    let name = name.as_str().as_bytes();
    let head = [RULE, name, &spec, origin.as_bytes(), detail.as_bytes(), code.as_bytes()];
    let hasher = head.into_iter().fold(Hasher::default(), Hasher::part);
    let counts = |file: &SourceFile| Some(file.path.as_str()) != manifest.file() && scope.has(file);
    let counted: Vec<bool> = source.files.iter().map(counts).collect();
    let files = source.files.iter().zip(&counted).filter(|(_, counts)| **counts);
    let hasher = files.fold(hasher, |hasher, (file, _)| file.digest_into(hasher));
    // Code may list folders: like data, empty ones count for every function.
    let hasher = match scope {
        Scope::Nothing => hasher,
        Scope::Everything | Scope::Reached { .. } => source.empty_folders_into(hasher),
    };
    (hasher.finish(), Counted(counted))
}
