//! `build:` of a project: a command that runs once, with the whole project and all its packages
//! (`devDependencies` included), in a temporary container with the limits and the network of an
//! install. The project's folder after it is what is deployed: compilers, bundlers, generators,
//! patched packages.
//!
//! ```text
//! source + packages + command ─▶ key ─▶ cached? ─yes─────────────────────────────────────▶ CommandResult
//!   └─no─▶ container: command, dev packages removed ─▶ checked like an upload ─▶ stored ─────▲
//! ```
//!
//! Called by `job`, before the code is inspected.

use super::dependencies::{self, Dependencies};
use crate::{
    blocking,
    cache::{Cache, WorkDir, container_user, upkeep},
    engine::container::{Bind, Ended, Exit, Rights, Task},
    error::{self, Hint},
    folder_size,
    image::APP,
    language::toolchain::{BuildCommand, CommandResult, Project},
    source::{self, ContentDigest, Hasher, Source, SourceLimits},
    text::short,
};
use epsilon_api::build::{BuildError, BuildEvent};
use serde::{Deserialize, Serialize};
use std::{fs, io, path::Path, sync::Arc};

/// Version of the procedure; part of the cache key. Raised when commands are run differently.
const VERSION: &[u8] = b"1";
/// Cache of build results.
const KIND: &str = "builds";
/// Where the cached packages are mounted. The container itself copies them, because their content
/// is untrusted.
const PACKAGES: &str = "/run/epsilon/node_modules";
/// List of the packages that are removed afterwards, as JSON.
const DEV_PACKAGES: &str = "/run/epsilon/leaving.json";
/// Copies the packages, runs the command, removes what only it needed.
const STEPS: &str = r#"set -e
if [ -d /run/epsilon/node_modules ]; then cp -a /run/epsilon/node_modules /app/; fi
PATH="/app/node_modules/.bin:$PATH" sh -c "$1"
exec node -e "$2""#;
/// Also removes caches that tools keep for their next run, which functions never have, and dangling
/// links.
const REMOVE_DEV: &str = r#"const fs = require("fs"), path = require("path"), modules = "/app/node_modules";
for (const folder of JSON.parse(fs.readFileSync("/run/epsilon/leaving.json", "utf8")).concat("node_modules/.cache", "node_modules/.package-lock.json"))
  fs.rmSync(path.join("/app", folder), { recursive: true, force: true });
const inside = (folder) => { try { return fs.readdirSync(folder); } catch { return []; } };
for (const name of inside(modules + "/.bin"))
  if (!fs.existsSync(modules + "/.bin/" + name)) fs.rmSync(modules + "/.bin/" + name, { force: true });
for (const name of inside(modules))
  if (name.startsWith("@") && inside(modules + "/" + name).length === 0) fs.rmSync(modules + "/" + name, { recursive: true, force: true });
"#;

/// Metadata stored beside a cached project.
#[derive(Debug, Deserialize, Serialize)]
struct CachedBuild {
    /// Digest of the layer of its packages.
    packages: Option<String>,
}

/// Runs build commands of projects.
#[derive(Clone, Debug)]
pub(super) struct Commands {
    pub(super) cache: Cache,
    /// Commands run with the limits and network of installs.
    pub(super) dependencies: Dependencies,
    pub(super) source: SourceLimits,
}

impl Commands {
    /// Runs a command in a project.
    pub(super) async fn run(
        &self,
        project: Project<'_>,
        BuildCommand { command, manifest }: BuildCommand<'_>,
    ) -> Result<CommandResult, BuildError> {
        let Project { source, runtime, packages: installed, work, .. } = project;
        let key = Hasher::default()
            .part(VERSION)
            .part(runtime.image.id.as_bytes())
            .part(command.as_bytes())
            .part(installed.map(|i| i.key.to_string()).unwrap_or_default().as_bytes())
            .part(source.digest.to_string().as_bytes())
            .finish();
        if let Some(made) = self.cached(key, work).await? {
            return Ok(made);
        }
        let folder = work.folder("project", container_user())?;
        let from = Arc::clone(source);
        let to = folder.clone();
        blocking::run("preparing a build", move || {
            dependencies::write_project(&from, &to)
                .map_err(|err| error::file("preparing a build", &err))
        })
        .await?;
        let ended = self.run_in_container(command, &folder, project).await?;
        if ended.exit != Exit::Code(0) {
            return Err(self.failed(command, &ended));
        }

        let packages = self.dependencies.store_built(&folder, work).await?;
        let limits = self.source.clone();
        let at = folder.clone();
        let within = Arc::clone(work);
        let made = blocking::run("reading what a build left", move || {
            source::adopt(&at, &limits, within.path()).map_err(|err| {
                error::build_failed(format!(
                    "what `build` left cannot be deployed: {}",
                    err.message
                ))
            })
        });
        let made = Arc::new(made.await?);
        let unchanged = |path: &str| {
            made.get(path).map(|file| file.sha256) == source.get(path).map(|file| file.sha256)
        };
        if let Some(path) = manifest.filter(|path| !unchanged(path)) {
            return Err(error::build_failed(format!("`build` changed `{path}`"))
                .hint("the functions to deploy are determined before it runs"));
        }
        let entry = CachedBuild { packages: packages.as_ref().map(|p| p.layer.diff_id.clone()) };
        let cache = self.cache.clone();
        let work = Arc::clone(work);
        let from = Arc::clone(&made);
        blocking::run("storing what a build made", move || {
            store(&cache, key, &from, &entry, work.path())
                .map_err(|err| error::file("storing what a build made", &err))
        })
        .await?;
        Ok(CommandResult { source: made, packages, cached: false })
    }

    async fn cached(
        &self,
        key: ContentDigest,
        work: &Arc<WorkDir>,
    ) -> Result<Option<CommandResult>, BuildError> {
        let Some((home, held)) = self.cache.hold(KIND, &key.to_string()) else { return Ok(None) };
        let text = fs::read(home.join("made.json")).unwrap_or_default();
        let Ok(entry) = serde_json::from_slice::<CachedBuild>(&text) else { return Ok(None) };
        let packages = match entry.packages {
            None => None,
            Some(diff_id) => match self.dependencies.made(&diff_id) {
                Some(packages) => Some(packages),
                None => return Ok(None),
            },
        };
        let limits = self.source.clone();
        let work = Arc::clone(work);
        let source = blocking::run("reading what a build made", move || {
            let _held = held;
            source::adopt(&home.join("project"), &limits, work.path())
        });
        Ok(Some(CommandResult { source: Arc::new(source.await?), packages, cached: true }))
    }

    async fn run_in_container(
        &self,
        command: &str,
        folder: &Path,
        project: Project<'_>,
    ) -> Result<Ended, BuildError> {
        let Project { runtime, packages: installed, work, log, .. } = project;
        let Dependencies { engine, npm_env, network, limits, size, .. } = &self.dependencies;
        let egress_env = npm_env.egress();
        let owner @ (uid, gid) = container_user();
        let leaving = work.file("leaving.json", owner)?;
        let packages = installed.map(|installed| installed.dev.as_slice()).unwrap_or_default();
        serde_json::to_vec(packages)
            .map_err(io::Error::other)
            .and_then(|text| fs::write(&leaving, text))
            .map_err(|err| error::file("preparing a build", &err))?;
        let mut mounts = egress_env.mounts();
        mounts.push(Bind { host: folder.to_owned(), inside: APP, writable: true });
        mounts.push(Bind { host: leaving, inside: DEV_PACKAGES, writable: false });
        if let Some(installed) = installed {
            let host = installed.folder.clone();
            mounts.push(Bind { host, inside: PACKAGES, writable: false });
        }
        let mut env = egress_env.env();
        env.extend(["HOME=/tmp", "CI=true", "npm_config_cache=/tmp/npm"].map(str::to_owned));
        let task = Task {
            purpose: "build",
            image: runtime.reference.clone(),
            command: ["sh", "-c", STEPS, "build", command, REMOVE_DEV].map(str::to_owned).to_vec(),
            env,
            mounts,
            workdir: APP,
            rights: Rights::None { uid, gid },
            network: Some(network.name().await?),
            limits: *limits,
            largest_file: Some(*size),
        };
        let held = installed.map(|installed| installed.layer.held.clone());
        let container = engine.create(&task, Some(Arc::new((Arc::clone(work), held)) as _)).await?;
        let watched = [(folder.to_owned(), *size)];
        tokio::select! {
            ended = container.run(|line| log.report(BuildEvent::Line(line.to_owned()))) => Ok(ended?),
            too_large = folder_size::exceeds_limit(&watched) => Err(BuildError {
                code: error::build_failed("").code,
                message: format!("`build` leaves too much: {}", too_large.message),
                ..too_large
            }),
        }
    }

    /// The error, with the last lines of output.
    fn failed(&self, command: &str, ended: &Ended) -> BuildError {
        let limits = self.dependencies.limits;
        let (why, hint) = match ended.exit {
            Exit::TimedOut => (
                format!("took longer than {:?}", limits.time),
                "the operator's limit is `builder.install_timeout`",
            ),
            Exit::OutOfMemory => (
                format!("needs more than {}", limits.memory),
                "the operator's limit is `builder.install_memory`",
            ),
            Exit::Code(code) => (
                format!("ended with exit status {code}"),
                "it runs in the project's folder, with `node_modules/.bin` first in PATH",
            ),
        };
        let command = short(command);
        error::build_failed(format!("`{command}` {why}\n{}", ended.tail.join("\n"))).hint(hint)
    }
}

/// Stores the project in the cache. A build that comes second finds it there.
fn store(
    cache: &Cache,
    key: ContentDigest,
    source: &Source,
    entry: &CachedBuild,
    work: &Path,
) -> io::Result<()> {
    let home = work.join("made");
    let project = home.join("project");
    fs::create_dir_all(&project)?;
    dependencies::write_project(source, &project)?;
    fs::write(home.join("made.json"), serde_json::to_vec(entry)?)?;
    let bytes = source.files.iter().map(|file| file.bytes).sum();
    upkeep::write_size(&home, bytes)?;
    match fs::rename(&home, cache.entry_path(KIND, &key.to_string())) {
        Err(err) if err.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        moved => moved,
    }
}
