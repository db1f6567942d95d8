//! What a project requests from npm: the parts of `package.json` that decide what is installed, and
//! the files beside it. Reads only, runs nothing.

use super::local;
use crate::{
    error::{self, Hint},
    language::node::npmrc::{self, Operator},
    source::{ContentDigest, Hasher, Source},
    text::{decode, short},
};
use epsilon_api::{build::BuildError, ids::ProjectName, units::Bytes};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// npm's manifest.
const PACKAGE: &str = "package.json";
/// npm's settings. A file of this name never reaches npm unchanged: see [`npmrc`].
pub(super) const SETTINGS: &str = ".npmrc";
/// The lockfiles that npm honours, in order of precedence.
const LOCKFILES: [&str; 2] = ["npm-shrinkwrap.json", "package-lock.json"];
/// npm takes versions from a lockfile of Yarn 1 if it has none of its own; those of later Yarns it
/// ignores.
const YARN: (&str, &str) = ("yarn.lock", "# yarn lockfile v1");
/// Lockfiles of other tools.
const OTHERS: [&str; 4] = [YARN.0, "pnpm-lock.yaml", "bun.lock", "bun.lockb"];
/// The keys of `package.json` that decide what is installed.
const PARTS: [&str; 8] = [
    "dependencies",
    "optionalDependencies",
    "peerDependencies",
    "peerDependenciesMeta",
    "bundleDependencies",
    "overrides",
    "workspaces",
    "engines",
];
const DEV: &str = "devDependencies";
/// Largest `package.json`; npm's own largest are about 100 KiB.
const PACKAGE_MAX: Bytes = Bytes::mib(1);
/// Largest lockfile: those of the largest monorepos.
const LOCKFILE_MAX: Bytes = Bytes::mib(64);

/// What a project requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    parts: String,
    /// A reduced `package.json`: only the dependencies, no scripts, no workspaces.
    pub(super) package: String,
    files: Vec<(&'static str, Vec<u8>)>,
    /// The project's settings for npm that an install may see.
    pub(super) npmrc: String,
    /// The origins of packages without those settings.
    origins: String,
    pub(super) has_lockfile: bool,
    /// Development dependencies included.
    pub(super) with_dev: bool,
    /// npm copies folders of the project instead of linking them.
    copies: bool,
    /// The project contains packages, so npm needs all of its files.
    pub(super) needs_tree: bool,
    /// Notes for the developer, one line each.
    pub(super) notes: Vec<String>,
}

impl Manifest {
    /// `None` when there is nothing to install.
    pub(super) fn read(
        source: &Source,
        operator: &Operator,
        with_dev: bool,
    ) -> Result<Option<Self>, BuildError> {
        let Some(text) = source.read("package.json", PACKAGE_MAX)? else { return Ok(None) };
        let package: Map<String, Value> = serde_json::from_str(&decode("package.json", text)?)
            .map_err(|err| error::manifest_invalid(format!("package.json: {err}")))?;
        let is_empty = |part: &str| match package.get(part) {
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(items)) => items.is_empty(),
            Some(_) | None => true,
        };
        let parts_installed =
            ["dependencies", "optionalDependencies", "peerDependencies", "workspaces"];
        let has_dev = with_dev && !is_empty(DEV);
        if parts_installed.iter().all(|part| is_empty(part)) && !has_dev {
            return Ok(None);
        }
        let listed = parts_installed[..3].iter().chain(with_dev.then_some(&DEV));
        if let Some((name, path)) = listed.copied().find_map(|part| outside(&package, part)) {
            return Err(error::manifest_invalid(format!(
                "package.json: `{name}` is `{path}`, which is outside of the project's folder"
            ))
            .hint(
                "deploy the folder that holds both, with an `epsilon.yaml` whose `entry` names the file, or \
                 put the package inside",
            ));
        }
        let mut files = Vec::new();
        for name in LOCKFILES {
            files.extend(source.read(name, LOCKFILE_MAX)?.map(|content| (name, content)));
        }
        let has_lockfile = !files.is_empty();
        if !has_lockfile {
            let lock = source.read(YARN.0, LOCKFILE_MAX)?;
            let is_first =
                |lock: &Vec<u8>| String::from_utf8_lossy(lock).lines().any(|line| line == YARN.1);
            files.extend(lock.filter(is_first).map(|lock| (YARN.0, lock)));
        }
        let is_pinned = !files.is_empty();
        let settings = source.read(SETTINGS, PACKAGE_MAX)?.unwrap_or_default();
        let settings = String::from_utf8_lossy(&settings);
        let settings = npmrc::filter_project(settings.trim_start_matches('\u{feff}'), operator);
        let mut parts: Vec<_> = PARTS.iter().map(|part| (*part, package.get(*part))).collect();
        if with_dev {
            parts.push((DEV, package.get(DEV)));
        }
        let dev = with_dev.then_some(&DEV);
        let requested = parts_installed[..3]
            .iter()
            .chain(dev)
            .filter_map(|part| Some((*part, package.get(*part)?)));
        let requested: BTreeMap<_, _> = requested.collect();
        Ok(Some(Self {
            package: serde_json::to_string(&requested).unwrap_or_default(),
            parts: serde_json::to_string(&parts).unwrap_or_default(),
            files,
            copies: operator.copies
                || settings.text.lines().any(|line| line == "install-links=true"),
            npmrc: settings.text,
            origins: operator.origins(),
            has_lockfile,
            with_dev,
            needs_tree: !is_empty("workspaces")
                || parts_installed[..2].iter().any(|part| is_local(&package, part))
                || has_dev && is_local(&package, DEV),
            notes: [notes(source, &package, is_pinned), settings.notes].concat(),
        }))
    }

    /// Files of the project's root that npm gets, if it does not get all.
    pub(super) fn given(&self) -> Vec<&'static str> {
        [PACKAGE].into_iter().chain(self.files.iter().map(|(name, _)| *name)).collect()
    }

    /// Cache key over all that decides what is installed. Projects with the same key would install
    /// the same.
    pub(super) fn key(&self, source: &Source) -> ContentDigest {
        let mut key = Hasher::default().part(self.parts.as_bytes()).part(self.npmrc.as_bytes());
        key = key.part(self.origins.as_bytes());
        for (name, content) in &self.files {
            key = key.part(name.as_bytes()).part(content);
        }
        if self.needs_tree {
            key = local::digest_into(key, source, self.copies);
        }
        key.finish()
    }

    /// Key of the npm cache: packages that one project fetched with its own tokens, or from its own
    /// registries, are not visible to others.
    pub(super) fn cache_key(&self, project: &ProjectName) -> ContentDigest {
        Hasher::default()
            .part(project.as_str().as_bytes())
            .part(self.npmrc.as_bytes())
            .part(self.origins.as_bytes())
            .finish()
    }
}

/// Whether packages of this part are folders of the project.
fn is_local(package: &Map<String, Value>, part: &str) -> bool {
    let is_path = |text: &str| {
        text.starts_with("file:") || text.starts_with("link:") || text.starts_with(['.', '/'])
    };
    let Some(Value::Object(packages)) = package.get(part) else { return false };
    packages.values().filter_map(Value::as_str).any(is_path)
}

/// A package of this part outside of the project. Only the project is pushed, so npm would leave a
/// dangling link.
fn outside(package: &Map<String, Value>, part: &str) -> Option<(String, String)> {
    let Some(Value::Object(packages)) = package.get(part) else { return None };
    packages.iter().find_map(|(name, range)| {
        let range = range.as_str()?;
        let path = ["file:", "link:"].iter().find_map(|scheme| range.strip_prefix(scheme));
        let path = path.or_else(|| range.starts_with(['.', '/']).then_some(range))?;
        let mut depth = 0;
        let leaves = path.starts_with('/')
            || path.split('/').any(|part| {
                depth += match part {
                    "" | "." => 0,
                    ".." => -1,
                    _ => 1,
                };
                depth < 0
            });
        leaves.then(|| (short(name), short(range)))
    })
}

fn notes(source: &Source, package: &Map<String, Value>, is_pinned: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if !is_pinned {
        let other = OTHERS.iter().find(|name| source.get(name).is_some());
        notes.push(match other {
            Some(other) => format!(
                "`{other}` is ignored: npm installs what `package.json` requests, and chooses the versions. Push the \
                 `package-lock.json` that `npm install` makes to pin them; a `yarn.lock` of Yarn 1 does it, too"
            ),
            None => "no lockfile: `npm install` may choose other versions another day; push \
                     `package-lock.json` to pin them"
                .to_owned(),
        });
    }
    let scripts = package.get("scripts").and_then(Value::as_object);
    let is_ours = |name: &&str| scripts.is_some_and(|scripts| scripts.contains_key(*name));
    if let Some(script) =
        ["preinstall", "install", "postinstall", "prepare"].into_iter().find(is_ours)
    {
        notes.push(format!(
            "the project's own `{script}` script is not run: push its result, or run it with `build:` in \
             `epsilon.yaml`"
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::tests::project;

    async fn read(files: &[(&str, &str)]) -> Option<Manifest> {
        let (_work, source) = project(files).await;
        Manifest::read(&source, &Operator::default(), false).unwrap()
    }

    async fn key(files: &[(&str, &str)]) -> ContentDigest {
        let (_work, source) = project(files).await;
        Manifest::read(&source, &Operator::default(), false).unwrap().unwrap().key(&source)
    }

    async fn notes(files: &[(&str, &str)]) -> Vec<String> {
        read(files).await.unwrap().notes
    }

    const A: (&str, &str) = ("package.json", r#"{"dependencies":{"a":"1"}}"#);

    #[tokio::test]
    async fn nothing_to_install() {
        assert_eq!(read(&[]).await, None);
        assert_eq!(read(&[("package.json", r#"{"name":"x","dependencies":{}}"#)]).await, None);
        assert_eq!(read(&[("package.json", r#"{"devDependencies":{"a":"1"}}"#)]).await, None);
    }

    #[tokio::test]
    async fn the_key_follows_packages_and_nothing_else() {
        let first = key(&[A, ("index.js", "1")]).await;
        assert_eq!(first, key(&[A, ("index.js", "2")]).await);
        let named = r#"{"name":"x","version":"2","dependencies":{"a":"1"}}"#;
        assert_eq!(first, key(&[("package.json", named)]).await);
        assert_ne!(first, key(&[("package.json", r#"{"dependencies":{"a":"2"}}"#)]).await);
        assert_ne!(first, key(&[A, ("package-lock.json", "{}")]).await);
        assert_ne!(first, key(&[A, (".npmrc", "legacy-peer-deps=true")]).await);
        // Files that npm does not get decide nothing.
        assert_eq!(first, key(&[A, (".npmrc", "proxy=http://x")]).await);
    }

    #[tokio::test]
    async fn another_registry_of_the_operators_is_another_key() {
        let (_work, source) = project(&[A]).await;
        let key = |operator: &Operator| {
            Manifest::read(&source, operator, false).unwrap().unwrap().key(&source)
        };
        let other = Operator::read("registry=https://npm.example/", None);
        assert_ne!(key(&Operator::default()), key(&other));
    }

    #[tokio::test]
    async fn npm_cache_is_per_project_and_registries() {
        let name = |name| ProjectName::parse(name).unwrap();
        let tokened = (".npmrc", "//theirs.example/:_authToken=x");
        let (plain, own) = (read(&[A]).await.unwrap(), read(&[A, tokened]).await.unwrap());
        assert_eq!(plain.cache_key(&name("a")), plain.cache_key(&name("a")));
        assert_ne!(plain.cache_key(&name("a")), plain.cache_key(&name("b")));
        assert_ne!(plain.cache_key(&name("a")), own.cache_key(&name("a")));
    }

    #[tokio::test]
    async fn packages_in_the_project_need_all_of_it() {
        let local = ("package.json", r#"{"dependencies":{"a":"file:./lib"}}"#);
        assert!(read(&[local]).await.unwrap().needs_tree);
        assert!(
            read(&[("package.json", r#"{"workspaces":["packages/*"]}"#)]).await.unwrap().needs_tree
        );
        assert!(!read(&[A]).await.unwrap().needs_tree);
        let copied = (".npmrc", "install-links=true");
        for (settings, is_copied) in [(copied, true), ((".npmrc", ""), false)] {
            assert_eq!(read(&[local, settings]).await.unwrap().copies, is_copied);
            let key = async |text| key(&[local, settings, ("x.js", text)]).await;
            assert_eq!(key("1").await != key("2").await, is_copied);
        }
        assert!(Operator::read("install-links=true", None).copies);
    }

    #[tokio::test]
    async fn packages_outside_of_the_project_are_refused() {
        for path in
            ["file:../shared", "../shared", "file:./libs/../../x", "link:../a", "file:/opt/x"]
        {
            let package = format!(r#"{{"dependencies":{{"shared":"{path}"}}}}"#);
            let (_work, source) = project(&[("package.json", &package)]).await;
            let err = Manifest::read(&source, &Operator::default(), false).unwrap_err();
            assert_eq!(err.code, "MANIFEST_INVALID");
            assert!(err.message.contains(path) && err.hint.is_some(), "{}", err.message);
        }
        let inside = r#"{"dependencies":{"a":"file:./libs/x/../a","b":"^1.0.0","c":"npm:d@1"}}"#;
        assert!(read(&[("package.json", inside)]).await.is_some());
    }

    #[tokio::test]
    async fn what_is_not_honoured_is_reported() {
        assert_eq!(notes(&[A, ("package-lock.json", "{}")]).await, [""; 0]);
        assert!(notes(&[A]).await[0].contains("no lockfile"));
        for lock in ["yarn.lock", "pnpm-lock.yaml", "bun.lock"] {
            let text = "__metadata:\n  version: 8\n";
            assert!(notes(&[A, (lock, text)]).await[0].contains(&format!("`{lock}` is ignored")));
        }
        let script = r#"{"dependencies":{"a":"1"},"scripts":{"postinstall":"x"}}"#;
        let notes = notes(&[("package.json", script), ("npm-shrinkwrap.json", "{}")]).await;
        assert!(notes.len() == 1 && notes[0].contains("`postinstall`"));
    }

    #[tokio::test]
    async fn yarn_1_lockfile_is_used_without_an_npm_lockfile() {
        let yarn =
            |pin: &str| format!("# THIS IS\r\n# yarn lockfile v1\r\n{pin}").replace('\r', "");
        let (one, two) = (yarn("1"), yarn("2"));
        let with = read(&[A, ("yarn.lock", &one)]).await.unwrap();
        assert_eq!((with.given(), with.has_lockfile), (vec!["package.json", "yarn.lock"], false));
        assert_eq!(with.notes, [""; 0]);
        assert_ne!(key(&[A, ("yarn.lock", &one)]).await, key(&[A, ("yarn.lock", &two)]).await);
        let npms = ("package-lock.json", "{}");
        let both = read(&[A, npms, ("yarn.lock", &one)]).await.unwrap();
        assert_eq!(both.given(), ["package.json", "package-lock.json"]);
    }

    #[tokio::test]
    async fn package_json_must_be_an_object() {
        let (_work, source) = project(&[("package.json", "[]")]).await;
        assert_eq!(
            Manifest::read(&source, &Operator::default(), false).unwrap_err().code,
            "MANIFEST_INVALID"
        );
    }
}
