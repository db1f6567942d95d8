//! Which exports of a project's code become functions, with which settings: those that the manifest
//! names, else those that the language takes.

use crate::{
    error::{self, Hint},
    inspection::{Entry, Export, Inspection},
    language::Language,
    manifest::{FunctionKeys, Manifest},
    text::{listed, short},
};
use epsilon_api::{build::BuildError, function::FunctionSpec, ids::FunctionName, suggest};

/// An export that becomes a function.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chosen<'a> {
    pub(super) entry: &'a Entry,
    pub(super) export: &'a Export,
    /// Its keys in the manifest.
    keys: Option<&'a FunctionKeys>,
}

impl Chosen<'_> {
    /// Settings from the file, then the code, then defaults; with notes for the developer.
    pub(super) fn spec(
        &self,
        name: &FunctionName,
        manifest: &Manifest,
        notes: &mut Vec<String>,
    ) -> Result<FunctionSpec, BuildError> {
        let entry = &self.entry.entry;
        let export = &self.export.name;
        let code = match &self.export.config {
            Some(config) => FunctionKeys::from_code(config, manifest.ceilings()),
            None => Ok(FunctionKeys::default()),
        };
        let code = code.map_err(|(key, why)| {
            error::manifest_invalid(format!("{entry}: export `{export}`: `{key}` {why}"))
        })?;
        let keys = self.keys.cloned().unwrap_or_default().over(code);
        notes.extend(keys.remarks(name));
        keys.spec(manifest.runtime, entry, export)
            .map_err(|why| error::manifest_invalid(format!("`{name}` {why}")))
    }
}

/// The functions of an entry when the manifest names none.
pub(super) fn exported<'a>(
    language: &dyn Language,
    manifest: &Manifest,
    inspection: &'a Inspection,
    path: &str,
    notes: &mut Vec<String>,
) -> Result<Vec<(FunctionName, Chosen<'a>)>, BuildError> {
    let entry = loaded(language, inspection, path)?;
    let functions = language.functions(&manifest.project, entry, notes)?;
    let chosen = |(name, export)| (name, Chosen { entry, export, keys: None });
    Ok(functions.into_iter().map(chosen).collect())
}

fn loaded<'a>(
    language: &dyn Language,
    inspection: &'a Inspection,
    path: &str,
) -> Result<&'a Entry, BuildError> {
    inspection.found(path, |error_text| language.load_hint(error_text, path))
}

/// The functions that the manifest names.
pub(super) fn named<'a>(
    language: &dyn Language,
    manifest: &Manifest,
    inspection: &'a Inspection,
    wanted: Vec<(FunctionName, (&String, &'a FunctionKeys))>,
) -> Result<Vec<(FunctionName, Chosen<'a>)>, BuildError> {
    let mut chosen = Vec::new();
    for (name, (path, keys)) in wanted {
        let entry = loaded(language, inspection, path)?;
        let export = match &keys.export {
            Some(export) => find(entry, export),
            // Without an `export` key, a default export has the project's name.
            None => find(entry, name.as_str()).or_else(|| {
                find(entry, language.default_export())
                    .filter(|_| name.as_str() == manifest.project.as_str())
            }),
        };
        let export = export.ok_or_else(|| missing(&name, keys.export.as_deref(), entry))?;
        chosen.push((name, Chosen { entry, export, keys: Some(keys) }));
    }
    Ok(chosen)
}

fn find<'a>(entry: &'a Entry, name: &str) -> Option<&'a Export> {
    entry.exports.iter().find(|export| export.name == name)
}

fn missing(name: &FunctionName, export: Option<&str>, entry: &Entry) -> BuildError {
    let wanted = export.unwrap_or(name.as_str());
    let path = &entry.entry;
    let names = || entry.exports.iter().map(|export| export.name.as_str());
    let text = format!("`{path}` has no function `{}` among its exports", short(wanted));
    let err = error::export_not_found(text);
    if entry.exports.is_empty() {
        return err.hint("it exports nothing that can be called");
    }
    let has = listed(names());
    match suggest::nearest(wanted, names()) {
        Some(near) => err.hint(format!("it exports {has}; did you mean `{near}`?")),
        None => err.hint(format!("it exports {has}; name one of them with `export: NAME`")),
    }
}

/// Notes about other exports, which are not deployed because the manifest does not name them.
pub(super) fn not_named(chosen: &[(FunctionName, Chosen<'_>)]) -> Vec<String> {
    let mut entries: Vec<&Entry> = Vec::new();
    for (_, one) in chosen {
        if !entries.iter().any(|entry| entry.entry == one.entry.entry) {
            entries.push(one.entry);
        }
    }
    let used = |entry: &Entry, export: &Export| {
        chosen
            .iter()
            .any(|(_, one)| one.entry.entry == entry.entry && one.export.name == export.name)
    };
    let notes = entries.into_iter().filter_map(|entry| {
        let names: Vec<_> = entry.exports.iter().filter(|export| !used(entry, export)).collect();
        let names = listed(names.iter().map(|export| export.name.as_str()));
        let path = &entry.entry;
        (!names.is_empty()).then(|| {
            format!("`{path}` also exports {names}: not named in the manifest, not deployed")
        })
    });
    notes.collect()
}
