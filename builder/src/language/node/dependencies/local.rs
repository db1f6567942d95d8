//! Which files of a project's local packages (workspaces, `file:`) decide what npm installs: npm
//! links local packages, so their code is not part of `node_modules`, and changing it needs no
//! install.

use crate::source::{Hasher, Source, SourceFile};
use epsilon_api::units::Bytes;
use serde_json::Value;

/// Files that npm reads in a folder that is a package.
const READ: [&str; 4] = ["package.json", "package-lock.json", "npm-shrinkwrap.json", "yarn.lock"];
/// Extensions of packed packages, which npm unpacks.
const PACKED: [&str; 3] = [".tgz", ".tar.gz", ".tar"];
/// Largest manifest of a package; npm's own largest are about 100 KiB.
const PACKAGE_MAX: Bytes = Bytes::mib(1);

/// Adds everything that decides. `copies`: npm copies the folders instead of linking them.
pub(super) fn digest_into(hasher: Hasher, source: &Source, copies: bool) -> Hasher {
    let packages = || source.files.iter().filter(|file| name_of(file) == READ[0]);
    if copies || packages().any(|file| has_folder_of_programs(source, file)) {
        return hasher.part(source.digest.to_string().as_bytes());
    }
    let decides = |file: &&SourceFile| READ.contains(&name_of(file)) || is_packed(&file.path);
    let hasher =
        source.files.iter().filter(decides).fold(hasher, |all, file| file.digest_into(all));
    packages().flat_map(|file| programs(source, file)).fold(hasher, |hasher, path| {
        // npm links a program in `node_modules/.bin` if the file exists.
        let is_there: &[u8] = if source.get(&path).is_some() { b"there" } else { b"absent" };
        hasher.part(path.as_bytes()).part(is_there)
    })
}

fn is_packed(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    PACKED.iter().any(|ending| path.ends_with(ending))
}

fn name_of(file: &SourceFile) -> &str {
    file.path.rsplit('/').next().unwrap_or_default()
}

fn read(source: &Source, file: &SourceFile) -> Option<Value> {
    serde_json::from_slice(&source.read(&file.path, PACKAGE_MAX).ok()??).ok()
}

/// `directories.bin`: the files of a folder decide which programs exist.
fn has_folder_of_programs(source: &Source, file: &SourceFile) -> bool {
    read(source, file).is_some_and(|package| package.pointer("/directories/bin").is_some())
}

/// Paths of a package's programs.
fn programs(source: &Source, file: &SourceFile) -> Vec<String> {
    let package = read(source, file).unwrap_or_default();
    let folder = file.path.strip_suffix(READ[0]).unwrap_or_default();
    let paths: Vec<&str> = match package.get("bin") {
        Some(Value::String(path)) => vec![path],
        Some(Value::Object(paths)) => paths.values().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    paths.into_iter().map(|path| format!("{folder}{}", path.trim_start_matches("./"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{ContentDigest, tests::project};

    const ROOT: (&str, &str) = ("package.json", r#"{"workspaces":["libs/*"]}"#);
    const LIB: (&str, &str) = ("libs/a/package.json", r#"{"name":"a","bin":"./cli.js"}"#);

    async fn key(files: &[(&str, &str)], copies: bool) -> ContentDigest {
        let (_work, source) = project(files).await;
        digest_into(Hasher::default(), &source, copies).finish()
    }

    #[tokio::test]
    async fn code_of_workspaces_decides_nothing_and_their_manifests_do() {
        let first = key(&[ROOT, LIB, ("libs/a/i.js", "1"), ("libs/a/cli.js", "1")], false).await;
        let other = [ROOT, LIB, ("libs/a/i.js", "2"), ("libs/a/cli.js", "2"), ("new.js", "")];
        assert_eq!(first, key(&other, false).await);
        // A removed program; a changed dependency; a new package, also a packed one.
        assert_ne!(first, key(&[ROOT, LIB, ("libs/a/i.js", "1")], false).await);
        let asks =
            ("libs/a/package.json", r#"{"name":"a","bin":"./cli.js","dependencies":{"b":"1"}}"#);
        assert_ne!(
            first,
            key(&[ROOT, asks, ("libs/a/i.js", "1"), ("libs/a/cli.js", "1")], false).await
        );
        for more in [
            ("libs/b/package.json", "{}"),
            ("libs/a/npm-shrinkwrap.json", "{}"),
            ("dep.tgz", "1"),
            ("DEP.TGZ", "1"),
        ] {
            let files = [ROOT, LIB, ("libs/a/i.js", "1"), ("libs/a/cli.js", "1"), more];
            assert_ne!(first, key(&files, false).await, "{more:?}");
        }
    }

    #[tokio::test]
    async fn where_folders_are_copied_all_of_them_decides() {
        let code = |text| [ROOT, LIB, ("libs/a/i.js", text)];
        assert_ne!(key(&code("1"), true).await, key(&code("2"), true).await);
        let folder = ("libs/a/package.json", r#"{"directories":{"bin":"bin"}}"#);
        let programs = |path| [ROOT, folder, (path, "")];
        assert_ne!(
            key(&programs("libs/a/bin/x"), false).await,
            key(&programs("libs/a/bin/y"), false).await
        );
    }
}
