//! Which exports of an entry become functions when the manifest names none: every one, a default
//! export under the project's name.

use crate::{
    error::{self, Hint},
    inspection::{Entry, Export},
    language::Named,
    text::listed,
};
use epsilon_api::{
    build::BuildError,
    ids::{FunctionName, ProjectName},
};
use std::collections::{BTreeMap, btree_map::Entry as Slot};

/// The export name of a module's default export.
pub(super) const DEFAULT: &str = "default";

/// Every export of the entry, by name.
pub(super) fn functions<'a>(
    project: &ProjectName,
    entry: &'a Entry,
    notes: &mut Vec<String>,
) -> Result<Vec<Named<'a>>, BuildError> {
    let mut chosen: BTreeMap<FunctionName, &Export> = BTreeMap::new();
    for export in entry.exports.iter().filter(|export| export.name != DEFAULT) {
        match FunctionName::parse(&export.name) {
            Ok(name) if name.is_reserved() => notes.push(format!(
                "an export is not deployed: `{name}` is a path of the platform; to deploy it, name it in `epsilon.yaml`: \
                 under `functions:`, another name with `export: {name}`"
            )),
            Ok(name) => {
                chosen.insert(name, export);
            }
            Err(invalid) => notes.push(format!("an export is not deployed: {invalid}")),
        }
    }
    if let Some(export) = entry.exports.iter().find(|export| export.name == DEFAULT) {
        let name = FunctionName::parse(project.as_str()).map_err(|invalid| {
            let text = format!("the default export takes the project's name, but {invalid}");
            error::manifest_invalid(text).hint(
                "name it in `epsilon.yaml`: under `functions:`, a name with `export: default`",
            )
        })?;
        match chosen.entry(name) {
            Slot::Vacant(slot) => {
                slot.insert(export);
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
    notes.extend(helpers(chosen.values().copied()));
    Ok(chosen.into_iter().collect())
}

/// A note on unnamed exports that look like helpers, if others look like handlers.
fn helpers<'a>(chosen: impl Iterator<Item = &'a Export>) -> Option<String> {
    let (helpers, handlers): (Vec<_>, Vec<_>) = chosen.partition(|export| export.helper.is_some());
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
