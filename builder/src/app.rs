//! The builder as a whole: created once from its settings, then runs builds. `epsilon up` composes
//! it with gateway and agent; the `epsilon-builder` program runs it alone.

use crate::cache::{Cache, Opened};
use crate::config::Config;
use crate::dockerfile::Dockerfiles;
use crate::egress_env::EgressEnv;
use crate::engine::{Engine, EngineError};
use crate::error;
use crate::error::Hint;
use crate::job::BuildContext;
use crate::language::{Toolchains, toolchain::Parts};
use crate::network::Network;
use crate::publish::{Destination, Exports, LayerCache, Layout, Local, Remote};
use epsilon_api::{
    build::{BuildError, BuildJob, BuildLog, Builder, Built},
    chain::Chain,
    function::{ImageRef, Runtime},
    ids::VmId,
};
use futures_util::future::BoxFuture;
use std::{io, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::Semaphore;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// Why the builder did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The builder's data folder cannot be used.
    #[error("the builder's folder `{}` cannot be used", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The error of the file system.
        #[source]
        source: io::Error,
    },
    /// No engine answers at the socket.
    #[error("no container engine answers at `{}`", socket.display())]
    Engine {
        /// The engine's socket.
        socket: PathBuf,
        /// The error of the engine's client.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The builder.
#[derive(Debug)]
pub struct App {
    id: VmId,
    jobs: Arc<Jobs>,
    tasks: TaskTracker,
    network: Arc<Network>,
    /// Background upkeep of the caches; ends with this.
    _upkeep: AbortOnDropHandle<()>,
}

/// Runs builds for the gateway.
#[derive(Debug)]
struct Jobs {
    build_context: BuildContext,
    turns: Semaphore,
    limit: Duration,
}

impl App {
    /// Opens the builder's folder, connects to the engine, removes leftovers of a killed builder.
    ///
    /// # Errors
    /// When the folder cannot be used or no engine answers.
    pub async fn build(config: Config) -> Result<Self, StartError> {
        Self::open(config, None, false).await
    }

    /// The same for reproducible builds: images follow only from the source and the base, and no
    /// cache is read. They go where the settings say, or into this file, an OCI layout.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub async fn build_without_cache(
        config: Config,
        file: Option<PathBuf>,
    ) -> Result<Self, StartError> {
        Self::open(config, file, true).await
    }

    async fn open(
        config: Config,
        file: Option<PathBuf>,
        no_cache: bool,
    ) -> Result<Self, StartError> {
        let tasks = TaskTracker::new();
        let root = config.data.clone();
        let size = config.cache_size.get();
        let opened = {
            let tasks = tasks.clone();
            tokio::task::spawn_blocking(move || Cache::open(&root, size, tasks)).await
        };
        let opened = opened.unwrap_or_else(|gone| Err(io::Error::other(gone)));
        let Opened { cache, id, alone } =
            opened.map_err(|source| StartError::Folder { path: config.data.clone(), source })?;
        let member_id = VmId::parse(&format!("builder-{id}"));
        let member_id = member_id.map_err(|err| StartError::Folder {
            path: config.data.clone(),
            source: io::Error::other(err),
        })?;
        let silent = |err: EngineError| StartError::Engine {
            socket: config.engine.clone(),
            source: Box::new(err),
        };
        let engine = Engine::new(&config, id, tasks.clone()).map_err(silent)?;
        engine.check().await.map_err(silent)?;
        if alone {
            let removed = engine.remove_leftovers().await.map_err(silent)?;
            if removed > 0 {
                tracing::info!(removed, "Removed containers of a killed builder.");
            }
        }

        let egress_env = EgressEnv::new(&config);
        let network = Arc::new(Network::new(engine.clone(), config.install_network.clone()));
        if alone {
            network.remove().await; // of a killed builder
        }
        let upkeep = AbortOnDropHandle::new(tokio::spawn(cache.clone().run_upkeep()));
        let exports = Arc::new(Exports::new(engine.clone(), cache.clone()));
        let local =
            Arc::new(Local::new(engine.clone(), Arc::clone(&exports), config.image_transfer));
        let layer_cache = LayerCache::new(config.layer_cache(), config.agent_cache_size);
        let destination = match (file, config.registry.clone()) {
            (Some(file), _) => Destination::File(Layout::new(file, cache.clone(), exports)),
            (None, None) => Destination::Engine(Arc::clone(&local), layer_cache),
            (None, Some(registry)) => {
                Destination::Registry(Box::new(Remote::new(registry, cache.clone(), exports)))
            }
        };
        let parts = Parts {
            config: &config,
            engine: &engine,
            cache: &cache,
            egress_env: &egress_env,
            network: &network,
            local: &local,
        };
        let build_context = BuildContext {
            toolchains: Toolchains::new(parts),
            dockerfiles: Dockerfiles::new(&config, engine, egress_env, Arc::clone(&network)),
            destination,
            cache,
            no_cache,
            config,
        };
        let builds = build_context.config.builds;
        let limit = build_context.config.build_timeout;
        let jobs = Jobs { build_context, turns: Semaphore::new(builds), limit };
        Ok(Self { id: member_id, jobs: Arc::new(jobs), tasks, network, _upkeep: upkeep })
    }

    /// The id of this builder in a fleet: stable across restarts.
    pub fn member_id(&self) -> VmId {
        self.id.clone()
    }

    /// The interface for the gateway.
    pub fn builder(&self) -> Arc<dyn Builder> {
        Arc::clone(&self.jobs) as _
    }

    /// Ensures that the engine has the Node runtime base; returns its name. The first time on a
    /// machine this takes about a minute, after that one request to the engine.
    ///
    /// # Errors
    /// `RUNTIME_FAILED`, `ENGINE_FAILED`, `DISK_FULL`.
    pub async fn ensure_runtime(&self, log: &dyn BuildLog) -> Result<String, BuildError> {
        let toolchains = &self.jobs.build_context.toolchains;
        let node = toolchains.of(Runtime::Node);
        let node = node.ok_or_else(|| error::internal("there are no tools for Node"))?;
        Ok(node.base(log).await?.reference)
    }

    /// Waits until containers and folders of ended builds are removed, at most `grace`. Running
    /// builds have to be dropped before. Returns whether everything was removed.
    pub async fn shutdown(self, grace: Duration) -> bool {
        self.tasks.close();
        let cleaning = async {
            self.tasks.wait().await;
            self.network.remove().await;
        };
        let cleaned = tokio::time::timeout(grace, cleaning).await.is_ok();
        if !cleaned {
            tracing::warn!(
                "Containers or folders of builds could not be removed in time; the next start removes them."
            );
        }
        cleaned
    }
}

impl Builder for Jobs {
    fn build(&self, job: BuildJob) -> BoxFuture<'_, Result<Built, BuildError>> {
        Box::pin(async move {
            let log = Arc::clone(&job.log);
            let built = tokio::time::timeout(self.limit, async {
                let _turn = self.turn(&*log).await?;
                self.build_context.build(job).await
            });
            let built = built.await;
            self.build_context.cache.request_upkeep();
            let limit = self.limit;
            let slow = |_| {
                error::internal(format!("the build took longer than {limit:?}"))
                    .hint("the wait for its turn counts; its steps have limits of their own, such as `builder.install_timeout`")
            };
            built.map_err(slow)?
        })
    }

    fn remove(&self, image: ImageRef) -> BoxFuture<'_, Result<(), BuildError>> {
        Box::pin(async move { self.build_context.destination.remove(&image).await })
    }
}

impl Jobs {
    async fn turn(
        &self,
        log: &dyn BuildLog,
    ) -> Result<tokio::sync::SemaphorePermit<'_>, BuildError> {
        if let Ok(turn) = self.turns.try_acquire() {
            return Ok(turn);
        }
        log.report(error::note("waiting for a build slot: another build is running"));
        self.turns.acquire().await.map_err(|closed| {
            tracing::debug!(error = %Chain(&closed), "Build refused: the builder is shutting down.");
            error::internal("the builder is shutting down")
        })
    }
}
