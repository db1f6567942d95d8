//! Manifest, source and inspection → the functions to build: pure, the last step before images.
//!
//! The functions are those that `epsilon.yaml` names, else every export of the entry; a default
//! export takes the project's name. An export that is left out (invalid as a function name, or not
//! named by the manifest) gets a note: a project may export helpers.

mod code;
mod content;
mod missing;
#[cfg(test)]
mod tests;

use crate::manifest::origin::Origin;
use crate::{
    error::{self, Hint},
    inspection::{Entry, Inspection},
    manifest::{Functions, Manifest, short},
    source::{ContentDigest, Source},
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
    decide(manifest, source, inspection, only).map_err(|err| match missing::package(&err, source) {
        Some(name) => err.hint(format!(
            "`{name}` is in package.json and not installed: `npm install` in the project's folder"
        )),
        None => err,
    })
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
            let chosen = code::exported(manifest, inspection.found(entry)?, &mut notes)?;
            code_plans(manifest, source, inspection, selected(chosen, only)?, &mut notes)
        }
        Functions::Named(named) => {
            let wanted: Vec<_> =
                named.iter().map(|(name, (entry, keys))| (name.clone(), (entry, keys))).collect();
            let wanted = selected(wanted, only)?;
            let chosen = code::named(manifest, inspection, wanted)?;
            if only.is_empty() {
                notes.extend(code::not_named(&chosen));
            }
            code_plans(manifest, source, inspection, chosen, &mut notes)
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

fn code_plans(
    manifest: &Manifest,
    source: &Source,
    inspection: &Inspection,
    chosen: Vec<(FunctionName, Chosen<'_>)>,
    notes: &mut Vec<String>,
) -> Result<Vec<FunctionPlan>, BuildError> {
    let others = content::reached(inspection);
    let plans = chosen.into_iter().map(|(name, chosen)| {
        let spec = chosen.spec(&name, manifest, notes)?;
        let scope = Scope::of(chosen.entry, chosen.export, &others);
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

/// Names for a message: "`a`, `b`"; a long list is cut.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const MOST: usize = 20;
    let quoted: Vec<_> = names.map(|name| format!("`{}`", short(name))).collect();
    match quoted.get(MOST..) {
        None | Some([]) => quoted.join(", "),
        Some(rest) => format!("{} and {} more", quoted[..MOST].join(", "), rest.len()),
    }
}
