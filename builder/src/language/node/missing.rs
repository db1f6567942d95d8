//! Detects a package that the project lists and that is not installed: `epsilon dev` uses the
//! packages in the project's folder. For a better hint than that of `load_hint`.

use super::load_hint::missing_module;
use crate::source::Source;
use epsilon_api::{build::BuildError, units::Bytes};
use serde_json::Value;

/// Largest `package.json`; the largest in npm are around 100 KiB.
const PACKAGE_MAX: Bytes = Bytes::mib(1);

/// What to do about such a package.
pub(super) fn hint(err: &BuildError, source: &Source) -> Option<String> {
    let name = package(err, source)?;
    Some(format!(
        "`{name}` is in package.json and not installed: `npm install` in the project's folder"
    ))
}

/// The name of that package.
fn package(err: &BuildError, source: &Source) -> Option<String> {
    let module = missing_module(&err.message).filter(|_| err.code == "LOAD_FAILED")?;
    let name = name_of(module)?;
    let package: Value =
        serde_json::from_slice(&source.read("package.json", PACKAGE_MAX).ok()??).ok()?;
    let parts = ["dependencies", "optionalDependencies"].into_iter();
    let is_listed = parts.filter_map(|part| package.get(part)).any(|part| part.get(name).is_some());
    is_listed.then(|| name.to_owned())
}

/// `redis/lib` is a file of `redis`, `@a/b/c` one of `@a/b`.
fn name_of(module: &str) -> Option<&str> {
    let parts = if module.starts_with('@') { 2 } else { 1 };
    let end = module.match_indices('/').nth(parts - 1).map_or(module.len(), |(at, _)| at);
    module.get(..end).filter(|name| !name.starts_with(['.', '/']) && !name.is_empty())
}
