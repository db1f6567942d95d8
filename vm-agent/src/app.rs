//! The agent as a whole: builds every part once, and shuts them down in order. Started by
//! `epsilon up` (and by tests, with an engine of their own).

use crate::cell::refill;
use crate::config::Config;
use crate::container::budget::Budget;
use crate::context::Parts;
use crate::drain::DrainReason;
use crate::engine::Engine;
use crate::engine::docker::DockerEngine;
use crate::error::StartError;
use crate::images::gc;
use crate::keepalive::file::write_atomically;
use crate::keepalive::sweep;
use crate::layers::Layers;
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::service::VmService;
use crate::vm::LocalVm;
use crate::vm::census::Census;
use crate::{layers, reconcile, shutdown};
use epsilon_api::{
    chain::Chain,
    ids::{InstanceId, VmId},
    units::{Bytes, MilliCores},
    vm::Vm,
};
use prometheus::Registry;
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How often the number of running calls is read while draining.
const POLL_EVERY: Duration = Duration::from_millis(20);
/// Default share of the machine's memory for instances, in percent.
const MEMORY_SHARE: u64 = 80;

/// A running agent. Dropping it without [`Agent::shutdown`] leaves its containers running, as a
/// crash would: the next agent on the same directory adopts them.
#[derive(Debug)]
pub struct Agent {
    vm: Arc<LocalVm>,
    service: Arc<VmService>,
    registry: Registry,
    /// Locks the directory against a second agent.
    _lock: File,
}

impl Agent {
    /// Starts an agent on this machine's Docker.
    ///
    /// # Errors
    /// [`StartError`], for the operator.
    pub async fn build(config: Config, registry: &Registry) -> Result<Self, StartError> {
        let metrics = Metrics::register(registry)?;
        let engine =
            DockerEngine::new(&config, metrics.engine_seconds.clone()).map_err(|source| {
                StartError::Engine { socket: config.engine_socket.clone(), source }
            })?;
        Self::assemble(config, Arc::new(engine), metrics, registry).await
    }

    /// Starts an agent on the given engine.
    ///
    /// # Errors
    /// [`StartError`], for the operator.
    pub async fn with_engine(
        config: Config,
        engine: Arc<dyn Engine>,
        registry: &Registry,
    ) -> Result<Self, StartError> {
        let metrics = Metrics::register(registry)?;
        Self::assemble(config, engine, metrics, registry).await
    }

    async fn assemble(
        config: Config,
        engine: Arc<dyn Engine>,
        metrics: Metrics,
        registry: &Registry,
    ) -> Result<Self, StartError> {
        let folder = |path: &Path| {
            let path = path.to_owned();
            move |source| StartError::Folder { path, source }
        };
        fs::create_dir_all(config.folder.join("sockets"))
            // Logs and histories are below: readable for this user only, also where the data
            // directory is open.
            .and_then(|()| fs::set_permissions(&config.folder, fs::Permissions::from_mode(0o700)))
            .map_err(folder(&config.folder))?;
        let lock = lock(&config.folder)?;
        let id = vm_id(&config.folder, config.id.as_ref())?;
        let machine = engine.ping().await.map_err(|source| StartError::Engine {
            socket: config.engine_socket.clone(),
            source,
        })?;
        let cpu = MilliCores(machine.cores.saturating_mul(MilliCores::ONE.0));
        let share = Bytes(machine.memory.get() / 100 * MEMORY_SHARE);
        let budget = Budget::new(config.memory.unwrap_or(share));
        let logs =
            Logs::open(&config.folder.join("logs"), config.log_size, metrics.dropped_lines.clone())
                .map_err(folder(&config.folder.join("logs")))?;
        let layers = Layers::open(&config, &id, metrics.layers.clone())
            .map_err(folder(&config.folder.join("layers")))?;
        let socket = config.engine_socket.clone();
        let vm = LocalVm::new(Parts { id, cpu, config, engine, budget, layers, logs, metrics });
        registry.register(Box::new(Census::new(Arc::downgrade(&vm))?))?;
        if let Err(err) = vm.network.ensure(&vm.engine).await {
            tracing::warn!(error = %Chain(&err), "Network of functions could not be prepared; trying again.");
        }
        reconcile::adopt(&vm).await.map_err(|source| StartError::Engine { socket, source })?;
        if vm.is_draining() {
            tracing::info!(vm = %vm.id, "VM drains, as before this start.");
            vm.pools().iter().for_each(|pool| pool.close(true));
        }
        vm.spawn(reconcile::run(Arc::clone(&vm)));
        vm.spawn(refill::run(Arc::clone(&vm.cells)));
        vm.spawn(sweep::run(Arc::clone(&vm)));
        let images = Arc::clone(&vm);
        vm.spawn(async move { gc::run(&images).await });
        let layers = Arc::clone(&vm);
        vm.spawn(async move { layers::gc::run(&layers).await });
        tracing::info!(vm = %vm.id, memory = %vm.budget.total(), "Agent is ready.");
        Ok(Self {
            service: Arc::new(VmService(Arc::clone(&vm))),
            vm,
            registry: registry.clone(),
            _lock: lock,
        })
    }

    /// The registry of its metrics.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn service(&self) -> &Arc<VmService> {
        &self.service
    }

    /// The VM as the gateway uses it.
    pub fn vm(&self) -> Arc<dyn Vm> {
        Arc::clone(&self.service) as Arc<dyn Vm>
    }

    /// Takes no new calls, waits for running ones within `grace`, removes all containers and the
    /// network. Bounded by `grace` and a few times the setting `remove_timeout` (`shutdown.rs`).
    pub async fn shutdown(self, grace: Duration) {
        let vm = &self.vm;
        vm.set_draining(DrainReason::Shutdown, true);
        let deadline = Instant::now() + grace;
        while vm.calls() > 0 && Instant::now() < deadline {
            sleep(POLL_EVERY).await;
        }
        let cut = vm.calls();
        if cut > 0 {
            tracing::warn!(cut, "Agent stops; running calls are cut.");
        }
        vm.closed.cancel();
        for pool in vm.pools() {
            pool.kill_all();
        }
        vm.tasks.close();
        shutdown::remove_everything(vm).await;
        vm.logs.close().await;
    }
}

fn lock(folder: &Path) -> Result<File, StartError> {
    let path = folder.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| StartError::Folder { path: path.clone(), source })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StartError::InUse { path }),
        Err(err) => Err(StartError::Folder { path, source: err.into() }),
    }
}

/// This VM's id: the given one, else the stored one, else a new one. Always stored, so that a start
/// without a given id (EC2's metadata did not answer in time) does not become another VM.
fn vm_id(folder: &Path, given: Option<&VmId>) -> Result<VmId, StartError> {
    let path = folder.join("id");
    let stored = match fs::read_to_string(&path) {
        Ok(text) => Some(text.trim().to_owned()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(StartError::Folder { path, source }),
    };
    let text = match (given, &stored) {
        (Some(given), _) => given.to_string(),
        (None, Some(stored)) => stored.clone(),
        (None, None) => format!("vm-{}", InstanceId::random()),
    };
    let id = VmId::parse(&text).map_err(|source| StartError::Id { path: path.clone(), source })?;
    if stored.as_ref() != Some(&text) {
        write_atomically(&path, &text).map_err(|source| StartError::Folder { path, source })?;
    }
    Ok(id)
}
