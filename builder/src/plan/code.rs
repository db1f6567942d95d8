//! Which exports of a project's code become functions, under which names, with which settings.

use super::listed;
use crate::{
    error::{self, Hint},
    inspection::{Entry, Export, Inspection},
    manifest::{FunctionKeys, Manifest, short},
};
use epsilon_api::{
    build::BuildError,
    function::{FunctionSpec, Runtime},
    ids::FunctionName,
    suggest,
};
use std::collections::{BTreeMap, btree_map::Entry as Slot};

/// The export name of a module's default export.
const DEFAULT: &str = "default";

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
        keys.spec(Runtime::Node, entry, export)
            .map_err(|why| error::manifest_invalid(format!("`{name}` {why}")))
    }
}

/// Every export of the entry, by name.
pub(super) fn exported<'a>(
    manifest: &Manifest,
    entry: &'a Entry,
    notes: &mut Vec<String>,
) -> Result<Vec<(FunctionName, Chosen<'a>)>, BuildError> {
    let mut chosen = BTreeMap::new();
    for export in entry.exports.iter().filter(|export| export.name != DEFAULT) {
        match FunctionName::parse(&export.name) {
            Ok(name) if name.is_reserved() => notes.push(format!(
                "an export is not deployed: `{name}` is a path of the platform; to deploy it, name it in `epsilon.yaml`: \
                 under `functions:`, another name with `export: {name}`"
            )),
            Ok(name) => {
                chosen.insert(name, Chosen { entry, export, keys: None });
            }
            Err(invalid) => notes.push(format!("an export is not deployed: {invalid}")),
        }
    }
    if let Some(export) = entry.exports.iter().find(|export| export.name == DEFAULT) {
        let name = FunctionName::parse(manifest.project.as_str()).map_err(|invalid| {
            let text = format!("the default export takes the project's name, but {invalid}");
            error::manifest_invalid(text).hint(
                "name it in `epsilon.yaml`: under `functions:`, a name with `export: default`",
            )
        })?;
        match chosen.entry(name) {
            Slot::Vacant(slot) => {
                slot.insert(Chosen { entry, export, keys: None });
            }
            // Usually one function under both names, for both styles of import.
            Slot::Occupied(slot) => notes.push(format!(
                "the default export is not deployed: an export has the project's name `{}`",
                slot.key()
            )),
        }
    }
    if chosen.is_empty() {
        let path = &entry.entry;
        let err = error::no_functions(format!("`{path}` exports nothing that can be called"));
        return Err(err.hint(match notes.first() {
            Some(note) => note.clone(),
            None => "export a function, `exports.hello = (req, res) => res.send('hi')`, or an Express \
                     application, `module.exports = app`; what only listens, or registers itself with a \
                     framework, is not seen: a Dockerfile and `runtime: container` serve such a program"
                .into(),
        }));
    }
    notes.extend(helpers(chosen.values()));
    Ok(chosen.into_iter().collect())
}

/// A note on unnamed exports that look like helpers, if others look like handlers.
fn helpers<'a>(chosen: impl Iterator<Item = &'a Chosen<'a>>) -> Option<String> {
    let (helpers, handlers): (Vec<_>, Vec<_>) =
        chosen.map(|one| one.export).partition(|export| export.helper.is_some());
    if helpers.is_empty() || handlers.is_empty() {
        return None;
    }
    let shown = |export: &Export| {
        format!("{}{}", export.name, export.helper.as_deref().unwrap_or_default())
    };
    let shown: Vec<_> = helpers.into_iter().map(shown).collect();
    let names = listed(shown.iter().map(String::as_str));
    Some(format!(
        "every exported function is a public address, also what looks like a helper: {names}. Move it into another file, or \
         name the functions that are meant under `functions:` in `epsilon.yaml`"
    ))
}

/// The functions that the manifest names.
pub(super) fn named<'a>(
    manifest: &Manifest,
    inspection: &'a Inspection,
    wanted: Vec<(FunctionName, (&String, &'a FunctionKeys))>,
) -> Result<Vec<(FunctionName, Chosen<'a>)>, BuildError> {
    let mut chosen = Vec::new();
    for (name, (path, keys)) in wanted {
        let entry = inspection.found(path)?;
        let export = match &keys.export {
            Some(export) => find(entry, export),
            // Without an `export` key, a default export has the project's name.
            None => find(entry, name.as_str()).or_else(|| {
                find(entry, DEFAULT).filter(|_| name.as_str() == manifest.project.as_str())
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
