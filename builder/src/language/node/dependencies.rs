//! npm packages of a project → a folder for inspection and a layer. Installed in a temporary
//! container of the runtime base, never on this machine itself.
//!
//! ```text
//! package.json + lockfile ─▶ key ─▶ cached? ─yes────────────────────────────────▶ Installed
//!                                     └─no─▶ npm ci, no scripts ─▶ npm rebuild ──▶ layer, stored
//!                                            npm's cache, .npmrc   packages' scripts,
//!                                            of the operator       with neither
//! ```
//!
//! npm gets the operator's settings and, of the project's, what [`npmrc`](super::npmrc) allows. Packages' install
//! scripts run in a second container: they never see the npm cache, nor the settings of operator or
//! project, which may hold tokens. The project's own scripts never run here.

mod local;
mod manifest;
mod npm;
mod npm_output;

use super::npm_env::NpmEnv;
use crate::{
    blocking,
    cache::{Cache, WorkDir, container_user, upkeep},
    engine::{Engine, container::Limits},
    error::{self, Hint},
    folder_size,
    image::{Layer, tree},
    language::toolchain::{Installed, Project},
    network::Network,
    source::{ContentDigest, Hasher, Source},
    text::short,
};
use epsilon_api::{
    build::BuildError,
    ids::{InstanceId, ProjectName},
    units::Bytes,
};
use manifest::Manifest;
use npm::{Lock, Npm};
use serde::{Deserialize, Serialize};
use std::{fs, io, path::Path, sync::Arc};

/// Version of the procedure; part of the cache key. Raised when installs are done differently.
const VERSION: &[u8] = b"4";

/// Installs packages.
#[derive(Clone, Debug)]
pub(super) struct Dependencies {
    pub(super) engine: Engine,
    pub(super) cache: Cache,
    pub(super) npm_env: NpmEnv,
    pub(super) network: Arc<Network>,
    pub(super) limits: Limits,
    /// Disk space of one install.
    pub(super) size: Bytes,
}

/// Metadata stored beside a cached layer.
#[derive(Debug, Deserialize, Serialize)]
struct CachedMeta {
    diff_id: String,
    bytes: u64,
    #[serde(default)]
    dev: Vec<String>,
}

impl Dependencies {
    /// The packages that a project needs, optionally with those for development; `None` when it
    /// needs none.
    pub(super) async fn ensure(
        &self,
        project: Project<'_>,
        name: &ProjectName,
        with_dev: bool,
    ) -> Result<Option<Installed>, BuildError> {
        let Project { source, runtime, work, log, .. } = project;
        let from = Arc::clone(source);
        let npm_env = self.npm_env.clone();
        let read = blocking::run("reading package.json", move || {
            let operator = npm_env.operator()?;
            let manifest = Manifest::read(&from, &operator, with_dev)?;
            Ok(manifest.map(|manifest| (manifest.key(&from), manifest, operator)))
        });
        let Some((requested, manifest, operator)) = read.await? else { return Ok(None) };
        for note in &manifest.notes {
            log.report(error::note(note));
        }
        let key = Hasher::default()
            .part(VERSION)
            .part(runtime.image.id.as_bytes())
            .part(requested.to_string().as_bytes())
            .finish();
        if let Some(installed) = self.cached(key) {
            return Ok(Some(Installed { cached: true, ..installed }));
        }
        let folder = work.folder("install", container_user())?;
        let from = Arc::clone(source);
        let to = folder.clone();
        let only = (!manifest.needs_tree).then(|| manifest.given());
        let npmrc = manifest.npmrc.clone();
        blocking::run("preparing an install", move || {
            npm::prepare(&from, &to, only.as_deref(), &npmrc)
                .map_err(|err| error::file("preparing an install", &err))
        })
        .await?;
        let cache = self.cache.npm(manifest.cache_key(name))?;
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
        let from = folder.clone();
        let to = apart.clone();
        let package = manifest.package.clone();
        let lock = blocking::run("preparing install scripts", move || {
            let taken = Lock::take(&from);
            let taken =
                taken.and_then(|lock| npm::move_packages(&from, &to, &package).map(|()| lock));
            taken.map_err(|err| error::file("preparing install scripts", &err))
        });
        let folder = apart;
        let lock = lock.await?;
        for path in lock.own_folders() {
            log.report(error::note(format!(
                "the install scripts of `{}`, a folder of the project, are not run: push their results, or make it \
                 with `build:` in `epsilon.yaml`",
                short(path)
            )));
        }
        if lock.has_scripts() {
            npm.run_scripts(&folder).await?;
        }
        let limit = self.size;
        let looked_at = folder.clone();
        let is_there = blocking::run("measuring dependencies", move || found(&looked_at, limit));
        let Some(size) = is_there.await? else { return Ok(None) };
        let cache = self.cache.clone();
        let work = Arc::clone(work);
        let dev = lock.dev();
        blocking::run("storing dependencies", move || {
            store(&cache, |_| key, &folder, size, dev, work.path())
        })
        .await?;
        self.cached(key).map(Some).ok_or_else(lost)
    }

    /// Stores the packages after a `build` command, which may have changed them, by the digest of
    /// their layer.
    pub(super) async fn store_built(
        &self,
        folder: &Path,
        work: &Arc<WorkDir>,
    ) -> Result<Option<Installed>, BuildError> {
        let cache = self.cache.clone();
        let work = Arc::clone(work);
        let limit = self.size;
        let folder = folder.to_owned();
        let stored = blocking::run("storing dependencies", move || {
            let Some(size) = found(&folder, limit)? else { return Ok(None) };
            store(&cache, built_key, &folder, size, Vec::new(), work.path()).map(Some)
        });
        let Some(key) = stored.await? else { return Ok(None) };
        self.cached(key).map(Some).ok_or_else(lost)
    }

    /// Packages stored by [`Self::store_built`], by the digest of their layer.
    pub(super) fn made(&self, diff_id: &str) -> Option<Installed> {
        self.cached(built_key(diff_id))
    }

    fn cached(&self, key: ContentDigest) -> Option<Installed> {
        let (home, held) = self.cache.hold("dependencies", &key.to_string())?;
        let meta: CachedMeta =
            serde_json::from_slice(&fs::read(home.join("layer.json")).ok()?).ok()?;
        let layer =
            Layer { diff_id: meta.diff_id, tar: home.join("layer.tar"), bytes: meta.bytes, held };
        Some(Installed {
            key,
            folder: home.join("node_modules"),
            layer,
            dev: meta.dev,
            cached: false,
        })
    }
}

/// Moves the installed folder into the cache, with its layer. An install that comes second finds it
/// there.
fn store(
    cache: &Cache,
    key: impl FnOnce(&str) -> ContentDigest,
    folder: &Path,
    size: Bytes,
    dev: Vec<String>,
    work: &Path,
) -> Result<ContentDigest, BuildError> {
    let doing = "storing dependencies";
    let file = |err: io::Error| error::file(doing, &err);
    let home = work.join(format!("stored-{}", InstanceId::random()));
    fs::create_dir(&home).map_err(file)?;
    let modules = home.join("node_modules");
    fs::rename(folder.join("node_modules"), &modules).map_err(file)?;
    let layer = tree::packages(&modules, "app/node_modules", &home.join("layer.tar"))?;
    upkeep::write_size(&home, size.get().saturating_add(layer.bytes)).map_err(file)?;
    let key = key(&layer.diff_id);
    let meta = CachedMeta { diff_id: layer.diff_id, bytes: layer.bytes, dev };
    let text = serde_json::to_vec(&meta).map_err(|err| error::broken(doing, &err))?;
    fs::write(home.join("layer.json"), text).map_err(file)?;
    match fs::rename(&home, cache.entry_path("dependencies", &key.to_string())) {
        Err(err) if err.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(key),
        moved => moved.map(|()| key).map_err(file),
    }
}

/// The cache key of packages after a `build` command.
fn built_key(diff_id: &str) -> ContentDigest {
    Hasher::default().part(b"made").part(diff_id.as_bytes()).finish()
}

fn lost() -> BuildError {
    error::broken("storing dependencies", &io::Error::from(io::ErrorKind::NotFound))
}

/// Writes the files of a project into a folder owned by the containers' user, except npm's
/// settings.
pub(super) fn write_project(source: &Source, to: &Path) -> io::Result<()> {
    npm::prepare(source, to, None, "")
}

/// The size of the packages, if some were installed. Install scripts may have replaced the folder
/// by anything: this process reads it with its own rights, so it must be a folder and not a link
/// into this machine.
fn found(folder: &Path, limit: Bytes) -> Result<Option<Bytes>, BuildError> {
    let modules = folder.join("node_modules");
    match fs::symlink_metadata(&modules) {
        Ok(about) if about.is_dir() => {}
        Ok(_) => {
            return Err(error::dependencies_failed(
                "an install script replaced `node_modules` by something else",
            )
            .hint("one of the packages is malicious or compromised: check which ones have install scripts"));
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(error::file("measuring dependencies", &err)),
    }
    folder_size::within(&modules, folder_size::Count::Length, limit).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_replacing_packages_is_not_followed() {
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
        // Nothing on disk, but a terabyte in a layer.
        fs::File::create(modules.join("sparse")).unwrap().set_len(1 << 40).unwrap();
        assert!(found(dir.path(), limit).unwrap_err().message.contains("1MiB"));
    }
}
