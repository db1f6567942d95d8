//! Manifest, source and inspection → the functions to build: pure, the last step before images.
//!
//! The functions are those that `epsilon.yaml` names, else those exports of the entry that the
//! language takes. An export that is left out (invalid as a function name, or not
//! named by the manifest) gets a note: a project may export helpers.

mod code;
mod content;
#[cfg(test)]
mod tests;

use crate::{
    error::{self, Hint},
    inspection::{Entry, Inspection},
    language::{self, Language},
    manifest::{Functions, Manifest, origin::Origin},
    source::{ContentDigest, Source},
    text::listed,
};
use code::Chosen;
pub use content::Counted;
use content::Scope;
use epsilon_api::{
    build::BuildError,
    function::{FunctionSpec, Runtime},
    ids::FunctionName,
    suggest,
};

/// The plan of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The functions, by name.
    pub functions: Vec<FunctionPlan>,
    /// Notes for the developer, one line each: exports that are not deployed, and why.
    pub notes: Vec<String>,
    /// Where files cannot be attributed to single functions, and why.
    pub unknown: Vec<String>,
}

/// One function to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionPlan {
    /// Its name.
    pub name: FunctionName,
    /// Its settings, complete and checked.
    pub spec: FunctionSpec,
    /// Origin of its image.
    pub origin: Origin,
    /// Digest of the settings and of all content of the source that can matter to this function.
    /// With the same digest (and those of runtime and dependencies) the image is the same.
    pub content: ContentDigest,
    /// The files in that digest.
    pub counted: Counted,
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
    let hint = |err: BuildError| {
        let better = language::of(manifest.runtime).and_then(|of| of.plan_hint(&err, source));
        match better {
            Some(hint) => err.hint(hint),
            None => err,
        }
    };
    decide(manifest, source, inspection, only).map_err(hint)
}

fn decide(
    manifest: &Manifest,
    source: &Source,
    inspection: &Inspection,
    only: &[FunctionName],
) -> Result<Plan, BuildError> {
    let mut notes = Vec::new();
    let functions = match manifest.functions() {
        Functions::Exports(entry) => {
            let language = language_of(manifest)?;
            let chosen = code::exported(language, manifest, inspection, entry, &mut notes)?;
            let chosen = selected(chosen, only)?;
            code_plans(language, manifest, source, inspection, chosen, &mut notes)
        }
        Functions::Named(named) => {
            let wanted: Vec<_> =
                named.iter().map(|(name, (entry, keys))| (name.clone(), (entry, keys))).collect();
            let wanted = selected(wanted, only)?;
            let language = language_of(manifest)?;
            let chosen = code::named(language, manifest, inspection, wanted)?;
            if only.is_empty() {
                notes.extend(code::not_named(&chosen));
            }
            code_plans(language, manifest, source, inspection, chosen, &mut notes)
        }
        Functions::Containers(containers) => {
            let all: Vec<_> = containers.iter().map(|(name, how)| (name.clone(), how)).collect();
            let plans = selected(all, only)?.into_iter().map(|(name, (origin, keys))| {
                notes.extend(keys.remarks(&name));
                let spec = keys.clone().spec(Runtime::Container, "", "");
                let spec =
                    spec.map_err(|why| error::manifest_invalid(format!("`{name}` {why}")))?;
                let scope = match origin {
                    Origin::Image(_) => Scope::Nothing,
                    Origin::Code | Origin::Dockerfile(_) => Scope::Everything,
                };
                let (content, counted) =
                    content::digest(manifest, source, &name, &spec, origin, &scope);
                Ok(FunctionPlan { name, spec, origin: origin.clone(), content, counted })
            });
            plans.collect()
        }
    }?;
    if let Some(FunctionPlan { name, .. }) = functions.iter().find(|one| one.name.is_reserved()) {
        let text = format!("`{name}` is a path of the platform and no name for a function");
        return Err(error::manifest_invalid(text)
            .hint("name it in `epsilon.yaml`: under `functions:`, another name with `export:`"));
    }
    let unknown = inspection.entries.iter().filter_map(Entry::unknown).collect();
    Ok(Plan { functions, notes, unknown })
}

/// The language of a manifest whose functions are code.
fn language_of(manifest: &Manifest) -> Result<&'static dyn Language, BuildError> {
    language::of(manifest.runtime)
        .ok_or_else(|| error::manifest_invalid("`runtime: container` runs no code"))
}

fn code_plans(
    language: &dyn Language,
    manifest: &Manifest,
    source: &Source,
    inspection: &Inspection,
    chosen: Vec<(FunctionName, Chosen<'_>)>,
    notes: &mut Vec<String>,
) -> Result<Vec<FunctionPlan>, BuildError> {
    let others = content::reached(inspection);
    let plans = chosen.into_iter().map(|(name, chosen)| {
        let spec = chosen.spec(&name, manifest, notes)?;
        let scope = Scope::of(language, chosen.entry, chosen.export, &others);
        let (content, counted) =
            content::digest(manifest, source, &name, &spec, &Origin::Code, &scope);
        Ok(FunctionPlan { name, spec, origin: Origin::Code, content, counted })
    });
    plans.collect()
}

/// The items that `only` keeps.
fn selected<T>(
    mut all: Vec<(FunctionName, T)>,
    only: &[FunctionName],
) -> Result<Vec<(FunctionName, T)>, BuildError> {
    let names = || all.iter().map(|(name, _)| name.as_str());
    if let Some(unknown) = only.iter().find(|wanted| !names().any(|name| name == wanted.as_str())) {
        let err = error::function_not_found(format!("the project has no function `{unknown}`"));
        return Err(match suggest::nearest(unknown.as_str(), names()) {
            Some(near) => err.hint(format!("did you mean `{near}`?")),
            None => err.hint(format!("it has {}", listed(names()))),
        });
    }
    if !only.is_empty() {
        all.retain(|(name, _)| only.contains(name));
    }
    Ok(all)
}
