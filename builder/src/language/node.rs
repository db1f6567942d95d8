//! Node: JavaScript and TypeScript, packages from npm, one function per export.
//!
//! | file | what it does |
//! |---|---|
//! | `base` | the runtime base: which image, or how it is made from packages |
//! | [`wrapper`], `program` | the embedded wrapper and module graph reader (`graph/`), and their layers |
//! | `package` | `package.json`: the project's name, its entry |
//! | `dependencies`, `npmrc`, `npm_env` | npm packages, installed in a temporary container |
//! | `build_command` | `build:`, run with them |
//! | `inspect` | the code's exports, from such a container |
//! | `exports` | which of them become functions |
//! | `load_hint`, `missing` | what to do about an error of the code |

mod base;
mod build_command;
mod dependencies;
mod exports;
mod inspect;
mod load_hint;
mod missing;
mod npm_env;
mod npmrc;
mod package;
mod program;
pub mod wrapper;

use super::{
    Language, Named,
    toolchain::{
        BuildCommand, CommandResult, Inspect, Inspected, Installed, Parts, Project, Toolchain,
    },
};
use crate::{
    inspection::Entry,
    runtime::{Runtime, RuntimeBase, recipe::Recipe},
    source::Source,
};
use base::NodeBase;
use build_command::Commands;
use dependencies::Dependencies;
use epsilon_api::{
    build::{BuildError, BuildLog},
    ids::ProjectName,
};
use futures_util::future::BoxFuture;
use inspect::Inspector;
use npm_env::NpmEnv;
use package::Package;
use std::sync::Arc;

/// The rules of Node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node;

impl Language for Node {
    fn recipe(&self) -> &'static dyn Recipe {
        &NodeBase
    }

    fn project_name(&self, source: &Source) -> Result<Option<String>, BuildError> {
        Ok(Package::read(source)?.name)
    }

    fn entry(&self, source: &Source) -> Result<String, BuildError> {
        Package::read(source)?.entry(source)
    }

    fn check_entry(&self, entry: &str, source: &Source) -> Result<(), String> {
        package::check_entry(entry, source)
    }

    fn functions<'a>(
        &self,
        project: &ProjectName,
        entry: &'a Entry,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Named<'a>>, BuildError> {
        exports::functions(project, entry, notes)
    }

    fn default_export(&self) -> &'static str {
        exports::DEFAULT
    }

    fn is_module(&self, path: &str) -> bool {
        package::is_module(path)
    }

    fn is_left_out(&self, path: &str) -> bool {
        path.rsplit('/').next() == Some(".npmrc")
    }

    fn load_hint(&self, error_text: &str, entry: &str) -> Option<String> {
        load_hint::hint(error_text, entry)
    }

    fn plan_hint(&self, err: &BuildError, source: &Source) -> Option<String> {
        missing::hint(err, source)
    }
}

/// Node's tools in containers.
#[derive(Debug)]
pub(crate) struct Tools {
    base: RuntimeBase,
    dependencies: Dependencies,
    commands: Commands,
    inspector: Inspector,
}

impl Tools {
    pub(crate) fn new(parts: Parts<'_>) -> Self {
        let Parts { config, engine, cache, egress_env, network, local } = parts;
        let dependencies = Dependencies {
            engine: engine.clone(),
            cache: cache.clone(),
            npm_env: NpmEnv::new(egress_env.clone(), config.npmrc.clone()),
            network: Arc::clone(network),
            limits: config.install,
            size: config.install_size,
        };
        let commands = Commands {
            cache: cache.clone(),
            dependencies: dependencies.clone(),
            source: config.source.clone(),
        };
        let inspector =
            Inspector { engine: engine.clone(), cache: cache.clone(), limits: config.inspect };
        Self {
            base: RuntimeBase::new(
                &NodeBase,
                parts.config,
                engine.clone(),
                cache.clone(),
                egress_env.clone(),
                Arc::clone(local),
            ),
            dependencies,
            commands,
            inspector,
        }
    }
}

impl Toolchain for Tools {
    fn base<'a>(&'a self, log: &'a dyn BuildLog) -> BoxFuture<'a, Result<Runtime, BuildError>> {
        Box::pin(self.base.ensure(log))
    }

    fn packages<'a>(
        &'a self,
        project: Project<'a>,
        name: &'a ProjectName,
        with_dev: bool,
    ) -> BoxFuture<'a, Result<Option<Installed>, BuildError>> {
        Box::pin(self.dependencies.ensure(project, name, with_dev))
    }

    fn command<'a>(
        &'a self,
        project: Project<'a>,
        command: BuildCommand<'a>,
    ) -> BoxFuture<'a, Result<CommandResult, BuildError>> {
        Box::pin(self.commands.run(project, command))
    }

    fn inspect<'a>(
        &'a self,
        project: Project<'a>,
        inspect: Inspect<'a>,
    ) -> BoxFuture<'a, Result<Inspected, BuildError>> {
        Box::pin(self.inspector.inspect(project, inspect))
    }
}
