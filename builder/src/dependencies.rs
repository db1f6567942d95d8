//! npm packages of a project → a folder to inspect with and a layer. Installed in a throw-away container
//! of the runtime base, never on this machine's own system.
//!
//! ```text
//! package.json + lockfile ─▶ key ─▶ kept? ─yes──────────────────────────────────▶ Installed
//!                                     └─no─▶ npm ci, no scripts ─▶ npm rebuild ──▶ layer ─▶ kept
//!                                            npm's cache, .npmrc   packages' scripts,
//!                                            of the operator       with neither
//! ```
//!
//! npm believes the operator's settings and, of the project's, what [`npmrc`] lets through. Packages' own install
//! scripts run, but in a second container: what a package runs never sees a cache that is installed from, nor the
//! settings of either, which may hold tokens. The project's own scripts never run here.

mod local;
mod manifest;
mod npm;
mod npmrc;
pub(crate) mod size;
mod words;

pub(crate) use npmrc::Operator;

use crate::{
    blocking,
    cache::{Cache, WorkDir, container_user, upkeep},
    engine::{Engine, container::Limits},
    error::{self, Hint},
    image::{Layer, tree},
    manifest::short,
    network::Network,
    outside::Outside,
    runtime::Runtime,
    source::{ContentDigest, Hasher, Source},
};
use epsilon_api::{
    build::{BuildError, BuildLog},
    ids::{InstanceId, ProjectName},
    units::Bytes,
};
use manifest::Manifest;
use npm::{Lock, Npm};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Raised when installs are done in another way.
const RECIPE: &[u8] = b"4";

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
    /// Paths of the packages that only development needs.
    pub(crate) dev: Vec<String>,
    /// Nothing had to be installed.
    pub(crate) cached: bool,
}

/// What is written beside a kept layer.
#[derive(Debug, Deserialize, Serialize)]
struct Kept {
    diff_id: String,
    bytes: u64,
    #[serde(default)]
    dev: Vec<String>,
}

impl Dependencies {
    /// The packages that a project needs, or also those that only its development needs; `None` when it needs none.
    pub(crate) async fn ensure(
        &self,
        project: &ProjectName,
        with_dev: bool,
        source: &Arc<Source>,
        runtime: &Runtime,
        work: &Arc<WorkDir>,
        log: &dyn BuildLog,
    ) -> Result<Option<Installed>, BuildError> {
        let (from, outside) = (Arc::clone(source), self.outside.clone());
        let asked = blocking::run("reading package.json", move || {
            let operator = outside.operator()?;
            let manifest = Manifest::read(&from, &operator, with_dev)?;
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
        let (from, to) = (Arc::clone(source), folder.clone());
        let only = (!manifest.needs_tree).then(|| manifest.given());
        let npmrc = manifest.npmrc.clone();
        blocking::run("preparing an install", move || {
            npm::prepare(&from, &to, only.as_deref(), &npmrc)
                .map_err(|err| error::file("preparing an install", &err))
        })
        .await?;
        let cache = self.cache.npm(manifest.cache_key(project))?;
        let npm = Npm { dependencies: self, runtime, operator: &operator, work, log };
        let installed = npm.install(&folder, &manifest, &cache).await;
        let most = self.size;
        blocking::run("measuring npm's cache", move || {
            cache.measure(most);
            Ok(())
        })
        .await?;
        installed?;
        let apart = work.folder("packages", container_user())?;
        let (from, to, package) = (folder.clone(), apart.clone(), manifest.package.clone());
        let lock = blocking::run("preparing install scripts", move || {
            let taken = Lock::take(&from);
            let taken = taken.and_then(|lock| npm::set_apart(&from, &to, &package).map(|()| lock));
            taken.map_err(|err| error::file("preparing install scripts", &err))
        });
        let (folder, lock) = (apart, lock.await?);
        for path in lock.own_folders() {
            log.tell(error::note(format!(
                "the install scripts of `{}`, a folder of the project, are not run: push what they make, or make it \
                 with `build:` in `epsilon.yaml`",
                short(path)
            )));
        }
        if lock.has_scripts() {
            npm.run_scripts(&folder).await?;
        }
        let limit = self.size;
        let looked_at = folder.clone();
        let is_there = blocking::run("looking at dependencies", move || found(&looked_at, limit));
        let Some(size) = is_there.await? else { return Ok(None) };
        let (cache, work, dev) = (self.cache.clone(), Arc::clone(work), lock.dev());
        blocking::run("keeping dependencies", move || {
            keep(&cache, |_| key, &folder, size, dev, work.path())
        })
        .await?;
        self.kept(key).map(Some).ok_or_else(lost)
    }

    /// Keeps the packages that a `build` command has left, which may be others than were installed: by what they are.
    pub(crate) async fn keep_made(
        &self,
        folder: &Path,
        work: &Arc<WorkDir>,
    ) -> Result<Option<Installed>, BuildError> {
        let (cache, work, limit) = (self.cache.clone(), Arc::clone(work), self.size);
        let folder = folder.to_owned();
        let kept = blocking::run("keeping dependencies", move || {
            let Some(size) = found(&folder, limit)? else { return Ok(None) };
            keep(&cache, made_key, &folder, size, Vec::new(), work.path()).map(Some)
        });
        let Some(key) = kept.await? else { return Ok(None) };
        self.kept(key).map(Some).ok_or_else(lost)
    }

    /// Packages that [`Self::keep_made`] kept, by the digest of their layer.
    pub(crate) fn made(&self, diff_id: &str) -> Option<Installed> {
        self.kept(made_key(diff_id))
    }

    fn kept(&self, key: ContentDigest) -> Option<Installed> {
        let (home, held) = self.cache.hold("dependencies", &key.to_string())?;
        let kept: Kept = serde_json::from_slice(&fs::read(home.join("layer.json")).ok()?).ok()?;
        let layer =
            Layer { diff_id: kept.diff_id, tar: home.join("layer.tar"), bytes: kept.bytes, held };
        Some(Installed {
            key,
            folder: home.join("node_modules"),
            layer,
            dev: kept.dev,
            cached: false,
        })
    }
}

/// Moves the installed folder to where it is kept, with its layer. Whoever comes second finds it there.
fn keep(
    cache: &Cache,
    key: impl FnOnce(&str) -> ContentDigest,
    folder: &Path,
    size: Bytes,
    dev: Vec<String>,
    work: &Path,
) -> Result<ContentDigest, BuildError> {
    let doing = "keeping dependencies";
    let file = |err: io::Error| error::file(doing, &err);
    let home = work.join(format!("kept-{}", InstanceId::random()));
    fs::create_dir(&home).map_err(file)?;
    let modules = home.join("node_modules");
    fs::rename(folder.join("node_modules"), &modules).map_err(file)?;
    let layer = tree::packages(&modules, "app/node_modules", &home.join("layer.tar"))?;
    upkeep::write_size(&home, size.get().saturating_add(layer.bytes)).map_err(file)?;
    let key = key(&layer.diff_id);
    let kept = Kept { diff_id: layer.diff_id, bytes: layer.bytes, dev };
    let text = serde_json::to_vec(&kept).map_err(|err| error::broken(doing, &err))?;
    fs::write(home.join("layer.json"), text).map_err(file)?;
    match fs::rename(&home, cache.kept("dependencies", &key.to_string())) {
        Err(err) if err.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(key),
        moved => moved.map(|()| key).map_err(file),
    }
}

/// Where packages are kept that a command may have changed.
fn made_key(diff_id: &str) -> ContentDigest {
    Hasher::default().part(b"made").part(diff_id.as_bytes()).finish()
}

fn lost() -> BuildError {
    error::broken("keeping dependencies", &io::Error::from(io::ErrorKind::NotFound))
}

/// Writes the files of a project into a folder, for the user of containers, but for settings of npm.
pub(crate) fn lay_out(source: &Source, to: &Path) -> io::Result<()> {
    npm::prepare(source, to, None, "")
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
}
