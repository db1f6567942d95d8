//! Runs npm: one container fetches and unpacks, a second one runs the packages' install scripts.
//! The second has the packages and nothing else: no npm cache, no settings, nothing of the project.

use super::{
    Dependencies,
    manifest::{self, Manifest},
    npm_output::{self, NpmOutput},
};
use crate::{
    cache::{NpmCache, WorkDir, container_user, set_owner},
    engine::container::{Bind, Exit, Rights, Task},
    folder_size,
    image::APP,
    language::node::npmrc::Operator,
    runtime::Runtime,
    source::{FileKind, Source},
};
use epsilon_api::{
    build::{BuildError, BuildEvent, BuildLog},
    units::Bytes,
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// npm's flags in every container.
const QUIET: [&str; 4] = ["--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=notice"];
/// The list of packages that npm writes beside them.
const LOCK: &str = "node_modules/.package-lock.json";

/// npm in temporary containers.
pub(super) struct Npm<'a> {
    pub(super) dependencies: &'a Dependencies,
    pub(super) runtime: &'a Runtime,
    pub(super) operator: &'a Operator,
    pub(super) work: &'a Arc<WorkDir>,
    pub(super) log: &'a dyn BuildLog,
}

impl Npm<'_> {
    /// Fetches and unpacks, without running code of the packages.
    pub(super) async fn install(
        &self,
        folder: &Path,
        manifest: &Manifest,
        cache: &NpmCache,
    ) -> Result<(), BuildError> {
        let verb = if manifest.has_lockfile { "ci" } else { "install" };
        let dev = if manifest.with_dev { "--include=dev" } else { "--omit=dev" };
        let mut command = vec!["npm", verb, dev, "--ignore-scripts"];
        command.extend(QUIET);
        let cached = cache.folder();
        let mut mounts = vec![Bind { host: cached.clone(), inside: "/npm", writable: true }];
        mounts.extend(self.dependencies.npm_env.npmrc(self.work)?);
        // The cache's size before, plus the limit.
        let limit = Bytes(self.dependencies.size.get().saturating_mul(2));
        self.run(&command, folder, "/npm", mounts, vec![(cached, limit)]).await
    }

    /// Runs the install scripts of packages that have some: native addons, downloads of binaries.
    /// The project is not mounted: neither its files and settings, nor a script of its own that npm
    /// could run.
    pub(super) async fn run_scripts(&self, folder: &Path) -> Result<(), BuildError> {
        let mut command = vec!["npm", "rebuild", "--foreground-scripts"];
        command.extend(QUIET);
        self.run(&command, folder, "/tmp/npm", Vec::new(), Vec::new()).await
    }

    async fn run(
        &self,
        command: &[&str],
        folder: &Path,
        cache: &str,
        mut mounts: Vec<Bind>,
        mut watched: Vec<(PathBuf, Bytes)>,
    ) -> Result<(), BuildError> {
        let Dependencies { engine, npm_env, network, limits, size, .. } = self.dependencies;
        let (uid, gid) = container_user();
        let mut env = npm_env.egress().env();
        env.extend(npm_env.env(self.operator));
        env.extend([format!("npm_config_cache={cache}"), "HOME=/tmp".to_owned()]);
        mounts.extend(npm_env.egress().mounts());
        mounts.push(Bind { host: folder.to_owned(), inside: APP, writable: true });
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
        watched.push((folder.to_owned(), *size));
        let container = engine.create(&task, Some(Arc::clone(self.work) as _)).await?;
        let mut words = NpmOutput::default();
        let ended = tokio::select! {
            ended = container.run(|line| {
                if words.take(line) {
                    self.log.report(BuildEvent::Line(line.to_owned()));
                }
            }) => ended?,
            too_large = folder_size::exceeds_limit(&watched) => return Err(too_large),
        };
        match ended.exit {
            Exit::Code(0) => Ok(()),
            exit @ (Exit::Code(_) | Exit::OutOfMemory | Exit::TimedOut) => {
                Err(npm_output::failed(exit, &words, command[1], *limits))
            }
        }
    }
}

/// Puts what npm needs into its folder: `only` the manifest and the lockfile of the project; all of
/// the project if it contains packages. Its settings for npm only as far as an install may see
/// them.
pub(super) fn prepare(
    source: &Source,
    to: &Path,
    only: Option<&[&str]>,
    npmrc: &str,
) -> io::Result<()> {
    let owner = container_user();
    let make = |path: &Path| {
        let mut folder = to.to_owned();
        path.iter().try_for_each(|part| {
            folder.push(part);
            fs::create_dir_all(&folder)?;
            set_owner(&folder, owner)
        })
    };
    for path in source.empty_folders.iter().filter(|_| only.is_none()) {
        make(Path::new(path))?;
    }
    for file in &source.files {
        let is_settings = || file.path.split('/').any(|name| name == manifest::SETTINGS);
        let is_given = only.is_none_or(|only| only.contains(&file.path.as_str()));
        if !is_given || is_settings() {
            continue;
        }
        make(Path::new(&file.path).parent().unwrap_or(Path::new("")))?;
        let target = to.join(&file.path);
        match &file.kind {
            FileKind::File => drop(fs::copy(source.root.join(&file.path), &target)?),
            FileKind::Symlink { target: text } => std::os::unix::fs::symlink(text, &target)?,
        }
        set_owner(&target, owner)?;
    }
    if npmrc.is_empty() {
        return Ok(());
    }
    let settings = to.join(manifest::SETTINGS);
    fs::write(&settings, npmrc)?;
    set_owner(&settings, owner)
}

/// npm's report of what it installed.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Lock {
    packages: BTreeMap<String, Package>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Package {
    #[serde(default)]
    has_install_script: bool,
    /// Needed for development only.
    #[serde(default)]
    dev: bool,
}

impl Lock {
    /// Reads and removes the file: npm would trust it instead of the packages, and it lacks what a
    /// package says about compiling (`gypfile: false`, of packages with a prebuilt binary).
    pub(super) fn take(folder: &Path) -> io::Result<Self> {
        let path = folder.join(LOCK);
        match fs::read(&path) {
            Ok(text) => {
                fs::remove_file(&path)?;
                Ok(serde_json::from_slice(&text).unwrap_or_default())
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(err) => Err(err),
        }
    }

    /// Whether packages have install scripts, other than folders of the project, which are not in
    /// `node_modules`.
    pub(super) fn has_scripts(&self) -> bool {
        self.with_scripts().any(is_package)
    }

    /// Folders of the project that are installed as packages and have install scripts.
    pub(super) fn own_folders(&self) -> impl Iterator<Item = &str> {
        self.with_scripts().filter(|path| !is_package(path) && !path.is_empty())
    }

    /// Paths of packages for development only.
    pub(super) fn dev(&self) -> Vec<String> {
        let packages =
            self.packages.iter().filter(|(path, package)| package.dev && is_package(path));
        packages.map(|(path, _)| path.clone()).collect()
    }

    fn with_scripts(&self) -> impl Iterator<Item = &str> {
        let packages = self.packages.iter().filter(|(_, package)| package.has_install_script);
        packages.map(|(path, _)| path.as_str())
    }
}

fn is_package(path: &str) -> bool {
    path.split('/').any(|name| name == "node_modules")
}

/// Moves the packages into a folder of their own, with as much of `package.json` as npm needs.
pub(super) fn move_packages(from: &Path, to: &Path, package: &str) -> io::Result<()> {
    match fs::rename(from.join("node_modules"), to.join("node_modules")) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        moved => moved?,
    }
    let file = to.join("package.json");
    fs::write(&file, package)?;
    set_owner(&file, container_user())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_known_from_what_npm_wrote() {
        for (packages, has, own) in [
            (r#"{"node_modules/a":{"version":"1.0.0"}}"#, false, vec![]),
            (r#"{"node_modules/a":{"hasInstallScript":true}}"#, true, vec![]),
            (r#"{"lib/node_modules/a":{"hasInstallScript":true}}"#, true, vec![]),
            // A folder of the project, and the project itself.
            (
                r#"{"lib":{"hasInstallScript":true},"node_modules/lib":{"link":true}}"#,
                false,
                vec!["lib"],
            ),
            (r#"{"":{"hasInstallScript":true}}"#, false, vec![]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            assert!(!Lock::take(dir.path()).unwrap().has_scripts());
            fs::create_dir(dir.path().join("node_modules")).unwrap();
            let file = dir.path().join(LOCK);
            fs::write(&file, format!(r#"{{"packages":{packages}}}"#)).unwrap();
            let lock = Lock::take(dir.path()).unwrap();
            assert_eq!(lock.has_scripts(), has, "{packages}");
            assert_eq!(lock.own_folders().collect::<Vec<_>>(), own, "{packages}");
            assert!(!file.exists());
        }
    }
}
