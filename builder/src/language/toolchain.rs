//! The tools of a language that work in temporary containers: its runtime base, its package
//! manager, a project's build command, the inspection of exports. `job` calls them in this order,
//! and knows nothing else of a language.

use crate::{
    cache::{Cache, WorkDir},
    config::Config,
    egress_env::EgressEnv,
    engine::Engine,
    image::Layer,
    inspection::Inspection,
    network::Network,
    publish::Local,
    runtime::Runtime,
    source::{ContentDigest, Source},
};
use epsilon_api::{
    build::{BuildError, BuildLog},
    ids::ProjectName,
};
use futures_util::future::BoxFuture;
use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

/// The parts of the builder that tools are made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) config: &'a Config,
    pub(crate) engine: &'a Engine,
    pub(crate) cache: &'a Cache,
    pub(crate) egress_env: &'a EgressEnv,
    pub(crate) network: &'a Arc<Network>,
    pub(crate) local: &'a Arc<Local>,
}

/// What each step of one build works on.
#[derive(Clone, Copy)]
pub(crate) struct Project<'a> {
    pub(crate) source: &'a Arc<Source>,
    pub(crate) runtime: &'a Runtime,
    /// Its packages, once they are installed and if there are any.
    pub(crate) packages: Option<&'a Installed>,
    pub(crate) work: &'a Arc<WorkDir>,
    pub(crate) log: &'a dyn BuildLog,
}

/// Installed packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Installed {
    /// Cache key: the same request has the same packages.
    pub(crate) key: ContentDigest,
    /// Their folder on this machine. Cached; must not be written to.
    pub(crate) folder: PathBuf,
    pub(crate) layer: Layer,
    /// Paths of the packages that are needed for development only.
    pub(crate) dev: Vec<String>,
    /// It came from the cache.
    pub(crate) cached: bool,
}

/// What a project's `build` command is run with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BuildCommand<'a> {
    pub(crate) command: &'a str,
    /// The manifest's file, which the command must not change.
    pub(crate) manifest: Option<&'a str>,
}

/// What a project's `build` command left.
#[derive(Debug)]
pub(crate) struct CommandResult {
    pub(crate) source: Arc<Source>,
    pub(crate) packages: Option<Installed>,
    /// It came from the cache.
    pub(crate) cached: bool,
}

/// What is to be inspected.
#[derive(Clone, Debug)]
pub(crate) struct Inspect<'a> {
    /// The files to load, sorted.
    pub(crate) entries: Vec<String>,
    /// The environment that the code may need to load at all.
    pub(crate) environment: BTreeMap<String, String>,
    /// The manifest's file: settings are not code, so another one needs no second inspection.
    pub(crate) manifest: Option<&'a str>,
}

/// Result of an inspection.
#[derive(Debug)]
pub(crate) struct Inspected {
    pub(crate) inspection: Inspection,
    /// It came from the cache.
    pub(crate) cached: bool,
}

/// The tools of one language on this machine.
pub(crate) trait Toolchain: fmt::Debug + Send + Sync {
    /// The runtime base and the inspector, made if the engine lacks them.
    fn base<'a>(&'a self, log: &'a dyn BuildLog) -> BoxFuture<'a, Result<Runtime, BuildError>>;

    /// The packages that a project needs, optionally with those for development; `None` when it
    /// needs none.
    fn packages<'a>(
        &'a self,
        project: Project<'a>,
        name: &'a ProjectName,
        with_dev: bool,
    ) -> BoxFuture<'a, Result<Option<Installed>, BuildError>>;

    /// Runs a project's `build` command.
    fn command<'a>(
        &'a self,
        project: Project<'a>,
        command: BuildCommand<'a>,
    ) -> BoxFuture<'a, Result<CommandResult, BuildError>>;

    /// The exports of a project's entries. The only place where a build loads the developer's code.
    fn inspect<'a>(
        &'a self,
        project: Project<'a>,
        inspect: Inspect<'a>,
    ) -> BoxFuture<'a, Result<Inspected, BuildError>>;
}
