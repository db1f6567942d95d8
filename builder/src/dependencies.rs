//! npm packages of a project → a folder to inspect with and a layer. Installed in a throw-away container
//! of the runtime base, never on this machine's own system.
//!
//! ```text
//! package.json + lockfile ─▶ key ─▶ kept? ─yes─────────────────────────────────▶ Installed
//!                                     └─no─▶ npm ci, no scripts ─▶ npm rebuild ─▶ layer ─▶ kept
//!                                            npm's cache, .npmrc   scripts run,
//!                                            of the operator       with neither
//! ```
//!
//! npm believes the operator's settings and, of the project's, what [`npmrc`] lets through. Packages' own install
//! scripts run, but in a second container: what a package runs never sees a cache that is installed from, nor the
//! settings of either, which may hold tokens.

mod manifest;
mod npmrc;
mod size;
mod words;

pub(crate) use npmrc::Operator;

use crate::{
    blocking,
    cache::{Cache, NpmCache, WorkDir, container_user, give, upkeep},
    engine::{
        Engine,
        container::{Bind, Exit, Limits, Rights, Task},
    },
    error::{self, Hint},
    image::{APP, Layer, tree},
    network::Network,
    outside::Outside,
    runtime::Runtime,
    source::{ContentDigest, FileKind, Hasher, Source},
};
use epsilon_api::{
    build::{BuildError, BuildEvent, BuildLog},
    ids::ProjectName,
    units::Bytes,
};
use manifest::Manifest;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use words::Words;

/// Raised when installs are done in another way.
const RECIPE: &[u8] = b"2";
/// What npm is told in every container.
const QUIET: [&str; 4] = ["--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=notice"];

/// Installs packages.
#[derive(Clone, Debug)]
pub(crate) struct Dependencies {
    pub(crate) engine: Engine,
    pub(crate) cache: Cache,
    pub(crate) outside: Outside,
    pub(crate) network: Arc<Network>,
    pub(crate) limits: Limits,
    /// Most that one install may take on disk.
    pub(crate) size: Bytes,
}

/// Packages that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Installed {
    /// Of what was asked for: the same packages have the same key.
    pub(crate) key: ContentDigest,
    /// The `node_modules` folder on this machine. Kept; not to be written to.
    pub(crate) folder: PathBuf,
    pub(crate) layer: Layer,
    /// Nothing had to be installed.
    pub(crate) cached: bool,
}

/// What is written beside a kept layer.
#[derive(Debug, Deserialize, Serialize)]
struct Kept {
    diff_id: String,
    bytes: u64,
}

impl Dependencies {
    /// The packages that a project needs; `None` when it needs none.
    pub(crate) async fn ensure(
        &self,
        project: &ProjectName,
        source: &Arc<Source>,
        runtime: &Runtime,
        work: &Arc<WorkDir>,
        log: &dyn BuildLog,
    ) -> Result<Option<Installed>, BuildError> {
        let (from, outside) = (Arc::clone(source), self.outside.clone());
        let asked = blocking::run("reading package.json", move || {
            let operator = outside.operator()?;
            let manifest = Manifest::read(&from, &operator)?;
            Ok(manifest.map(|manifest| (manifest.key(&from), manifest, operator)))
        });
        let Some((asked, manifest, operator)) = asked.await? else { return Ok(None) };
        for note in &manifest.notes {
            log.tell(error::note(note));
        }
        let key = Hasher::default()
            .part(RECIPE)
            .part(runtime.image.id.as_bytes())
            .part(asked.to_string().as_bytes())
            .finish();
        if let Some(installed) = self.kept(key) {
            return Ok(Some(Installed { cached: true, ..installed }));
        }
        let folder = work.folder("install", container_user())?;
        let (from, to, whole) = (Arc::clone(source), folder.clone(), manifest.needs_tree);
        let npmrc = manifest.npmrc.clone();
        blocking::run("preparing an install", move || {
            prepare(&from, &to, whole, &npmrc)
                .map_err(|err| error::file("preparing an install", &err))
        })
        .await?;
        let cache = self.cache.npm(manifest.cache_key(project))?;
        let npm =
            Npm { dependencies: self, runtime, folder: &folder, operator: &operator, work, log };
        let installed = npm.install(&manifest, &cache).await;
        let most = self.size;
        blocking::run("measuring npm's cache", move || {
            cache.measure(most);
            Ok(())
        })
        .await?;
        installed?;
        forget(&folder).map_err(|err| error::file("preparing install scripts", &err))?;
        if has_scripts(&folder) {
            npm.run_scripts().await?;
        }
        let limit = self.size;
        let looked_at = folder.clone();
        let is_there = blocking::run("looking at dependencies", move || found(&looked_at, limit));
        let Some(size) = is_there.await? else { return Ok(None) };
        let (cache, work) = (self.cache.clone(), Arc::clone(work));
        blocking::run("keeping dependencies", move || {
            keep(&cache, key, &folder, size, work.path())
        })
        .await?;
        self.kept(key).map(Some).ok_or_else(|| {
            error::broken("keeping dependencies", &io::Error::from(io::ErrorKind::NotFound))
        })
    }

    fn kept(&self, key: ContentDigest) -> Option<Installed> {
        let (home, held) = self.cache.hold("dependencies", &key.to_string())?;
        let kept: Kept = serde_json::from_slice(&fs::read(home.join("layer.json")).ok()?).ok()?;
        let layer =
            Layer { diff_id: kept.diff_id, tar: home.join("layer.tar"), bytes: kept.bytes, held };
        Some(Installed { key, folder: home.join("node_modules"), layer, cached: false })
    }
}

/// npm in throw-away containers, at work in one folder.
struct Npm<'a> {
    dependencies: &'a Dependencies,
    runtime: &'a Runtime,
    folder: &'a Path,
    operator: &'a Operator,
    work: &'a Arc<WorkDir>,
    log: &'a dyn BuildLog,
}

impl Npm<'_> {
    /// Fetches and unpacks, without running anything of the packages.
    async fn install(&self, manifest: &Manifest, cache: &NpmCache) -> Result<(), BuildError> {
        let verb = if manifest.has_lockfile { "ci" } else { "install" };
        let mut command = vec!["npm", verb, "--omit=dev", "--ignore-scripts"];
        command.extend(QUIET);
        let folder = cache.folder();
        let mut mounts = vec![Bind { host: folder.clone(), inside: "/npm", writable: true }];
        mounts.extend(self.dependencies.outside.npmrc(self.work)?);
        // It had at most that much before, and gets at most that much more.
        let limit = Bytes(self.dependencies.size.get().saturating_mul(2));
        self.run(&command, "/npm", mounts, vec![(folder, limit)]).await
    }

    /// Runs the install scripts of packages that have some: native addons, downloads of binaries.
    async fn run_scripts(&self) -> Result<(), BuildError> {
        let mut command = vec!["npm", "rebuild", "--foreground-scripts"];
        command.extend(QUIET);
        self.run(&command, "/tmp/npm", Vec::new(), Vec::new()).await
    }

    async fn run(
        &self,
        command: &[&str],
        cache: &str,
        mut mounts: Vec<Bind>,
        mut watched: Vec<(PathBuf, Bytes)>,
    ) -> Result<(), BuildError> {
        let Dependencies { engine, outside, network, limits, size, .. } = self.dependencies;
        let (uid, gid) = container_user();
        let mut env = outside.env();
        env.extend(outside.npm_env(self.operator));
        env.extend([format!("npm_config_cache={cache}"), "HOME=/tmp".to_owned()]);
        mounts.extend(outside.mounts());
        mounts.push(Bind { host: self.folder.to_owned(), inside: APP, writable: true });
        let task = Task {
            purpose: "npm",
            image: self.runtime.reference.clone(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            env,
            mounts,
            workdir: APP,
            rights: Rights::None { uid, gid },
            network: Some(network.name().await?),
            limits: *limits,
            largest_file: Some(*size),
        };
        watched.push((self.folder.to_owned(), *size));
        let container = engine.create(&task, Some(Arc::clone(self.work) as _)).await?;
        let mut words = Words::default();
        let ended = tokio::select! {
            ended = container.run(|line| {
                if words.take(line) {
                    self.log.tell(BuildEvent::Line(line.to_owned()));
                }
            }) => ended?,
            too_large = size::outgrown(&watched) => return Err(too_large),
        };
        match ended.exit {
            Exit::Code(0) => Ok(()),
            exit @ (Exit::Code(_) | Exit::OutOfMemory | Exit::TimedOut) => {
                Err(words::failed(exit, &words, command[1], *limits))
            }
        }
    }
}

/// Puts what npm needs into the folder that it works in: the manifest and the lockfile of the project; for packages
/// that lie in the project itself, everything. Its settings for npm only as far as an install may see them.
fn prepare(source: &Source, to: &Path, whole: bool, npmrc: &str) -> io::Result<()> {
    let owner = container_user();
    for file in &source.files {
        let is_settings = || file.path.split('/').any(|name| name == manifest::SETTINGS);
        if !whole && !manifest::FILES.contains(&file.path.as_str()) || is_settings() {
            continue;
        }
        let mut folder = to.to_owned();
        for part in Path::new(&file.path).parent().into_iter().flat_map(Path::iter) {
            folder.push(part);
            fs::create_dir_all(&folder)?;
            give(&folder, owner)?;
        }
        let target = to.join(&file.path);
        match &file.kind {
            FileKind::File => drop(fs::copy(source.root.join(&file.path), &target)?),
            FileKind::Symlink { target: text } => std::os::unix::fs::symlink(text, &target)?,
        }
        give(&target, owner)?;
    }
    if npmrc.is_empty() {
        return Ok(());
    }
    let settings = to.join(manifest::SETTINGS);
    fs::write(&settings, npmrc)?;
    give(&settings, owner)
}

/// Takes the project's settings for npm away again: tokens are not for the packages' own scripts.
fn forget(folder: &Path) -> io::Result<()> {
    match fs::remove_file(folder.join(manifest::SETTINGS)) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// npm writes beside the packages what it installed, and which of them have scripts.
fn has_scripts(folder: &Path) -> bool {
    #[derive(Deserialize)]
    struct Lock {
        packages: std::collections::BTreeMap<String, Package>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Package {
        #[serde(default)]
        has_install_script: bool,
    }
    let text = fs::read(folder.join("node_modules/.package-lock.json")).unwrap_or_default();
    let lock: Result<Lock, _> = serde_json::from_slice(&text);
    lock.is_ok_and(|lock| lock.packages.values().any(|package| package.has_install_script))
}

/// Moves the installed folder to where it is kept, with its layer. Whoever comes second finds it there.
fn keep(
    cache: &Cache,
    key: ContentDigest,
    folder: &Path,
    size: Bytes,
    work: &Path,
) -> Result<(), BuildError> {
    let doing = "keeping dependencies";
    let file = |err: io::Error| error::file(doing, &err);
    let home = work.join("kept");
    fs::create_dir(&home).map_err(file)?;
    let modules = home.join("node_modules");
    fs::rename(folder.join("node_modules"), &modules).map_err(file)?;
    let layer = tree::folder(&modules, "app/node_modules", &[], &home.join("layer.tar"))?;
    upkeep::write_size(&home, size.get().saturating_add(layer.bytes)).map_err(file)?;
    let kept = Kept { diff_id: layer.diff_id, bytes: layer.bytes };
    let text = serde_json::to_vec(&kept).map_err(|err| error::broken(doing, &err))?;
    fs::write(home.join("layer.json"), text).map_err(file)?;
    let target = cache.kept("dependencies", &key.to_string());
    match fs::rename(&home, &target) {
        Err(err) if err.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        moved => moved.map_err(file),
    }
}

/// The size of the packages, if some were installed. Install scripts may have put anything in their place: what lies there
/// is read by this process, with its rights, so it has to be a folder and no link to one of this machine.
fn found(folder: &Path, limit: Bytes) -> Result<Option<Bytes>, BuildError> {
    let modules = folder.join("node_modules");
    match fs::symlink_metadata(&modules) {
        Ok(about) if about.is_dir() => {}
        Ok(_) => {
            return Err(error::dependencies_failed(
                "an install script put something else in the place of `node_modules`",
            )
            .hint("one of the packages does harm, or was taken over: see which ones have install scripts"));
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(error::file("looking at dependencies", &err)),
    }
    size::within(&modules, size::Count::Length, limit).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_the_place_of_packages_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let limit = Bytes::mib(1);
        assert!(found(dir.path(), limit).unwrap().is_none());
        let modules = dir.path().join("node_modules");
        std::os::unix::fs::symlink("/etc", &modules).unwrap();
        let err = found(dir.path(), limit).unwrap_err();
        assert_eq!(err.code, "DEPENDENCIES_FAILED");
        assert!(err.message.contains("install script"), "{}", err.message);
        fs::remove_file(&modules).unwrap();
        fs::create_dir(&modules).unwrap();
        assert!(found(dir.path(), limit).unwrap().is_some());
        // Nothing on disk, yet a terabyte in a layer.
        fs::File::create(modules.join("sparse")).unwrap().set_len(1 << 40).unwrap();
        assert!(found(dir.path(), limit).unwrap_err().message.contains("1MiB"));
    }

    #[test]
    fn scripts_are_known_from_what_npm_wrote() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!has_scripts(dir.path()));
        fs::create_dir(dir.path().join("node_modules")).unwrap();
        let lock = dir.path().join("node_modules/.package-lock.json");
        fs::write(&lock, r#"{"packages":{"node_modules/a":{"version":"1.0.0"}}}"#).unwrap();
        assert!(!has_scripts(dir.path()));
        fs::write(&lock, r#"{"packages":{"node_modules/a":{"hasInstallScript":true}}}"#).unwrap();
        assert!(has_scripts(dir.path()));
    }
}
