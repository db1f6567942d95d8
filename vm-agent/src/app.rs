//! The agent as a whole: builds every part once, and ends them in order. Started by `epsilon up` (and by
//! tests, with an engine of their own).

use crate::{
    cell::refill,
    config::Config,
    drain::Why,
    engine::{Engine, docker::DockerEngine},
    error::StartError,
    images::room,
    instance::budget::Budget,
    keep::sweep,
    layers::{self, Layers},
    logs::Logs,
    metrics::{Census, Metrics},
    reconcile, shutdown,
    vm::{Front, LocalVm, Parts},
};
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
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How often the end of running calls is looked for while draining.
const LOOK: Duration = Duration::from_millis(20);
/// Share of the machine's memory that instances may have unless the operator says otherwise, in percent.
const MEMORY_SHARE: u64 = 80;

/// A running agent. Dropping it without [`Agent::shutdown`] leaves its containers running, as a crash would:
/// the next agent on the same folder takes them over.
#[derive(Debug)]
pub struct Agent {
    vm: Arc<LocalVm>,
    front: Arc<Front>,
    registry: Registry,
    /// Keeps a second agent out of the folder.
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

    /// Starts an agent on an engine of the caller's choice.
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
            // What functions log and keep lies below: nobody else's, also where the data folder is open.
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
            tracing::warn!(cause = %Chain(&err), "The network of functions is not in order.");
        }
        reconcile::adopt(&vm).await.map_err(|source| StartError::Engine { socket, source })?;
        if vm.is_draining() {
            tracing::info!(vm = %vm.id, "It drains, as before this start.");
            vm.pools().iter().for_each(|pool| pool.close(true));
        }
        vm.spawn(reconcile::run(Arc::clone(&vm)));
        vm.spawn(refill::run(Arc::clone(&vm)));
        vm.spawn(sweep::run(Arc::clone(&vm)));
        let images = Arc::clone(&vm);
        vm.spawn(async move { room::keep(&images).await });
        let layers = Arc::clone(&vm);
        vm.spawn(async move { layers::room::keep(&layers).await });
        tracing::info!(vm = %vm.id, memory = %vm.budget.total(), "Agent is ready.");
        Ok(Self {
            front: Arc::new(Front(Arc::clone(&vm))),
            vm,
            registry: registry.clone(),
            _lock: lock,
        })
    }

    /// Where its metrics are.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn front(&self) -> &Arc<Front> {
        &self.front
    }

    /// The VM as the gateway uses it.
    pub fn vm(&self) -> Arc<dyn Vm> {
        Arc::clone(&self.front) as Arc<dyn Vm>
    }

    /// Takes no new calls, lets running ones end within `grace`, removes all containers and the network.
    /// Bounded by `grace` and a few times the settings' `remove_timeout` (`shutdown.rs`).
    pub async fn shutdown(self, grace: Duration) {
        let vm = &self.vm;
        vm.set_draining(Why::Ending, true);
        let deadline = Instant::now() + grace;
        while vm.calls() > 0 && Instant::now() < deadline {
            sleep(LOOK).await;
        }
        let cut = vm.calls();
        if cut > 0 {
            tracing::warn!(cut, "The grace is over; calls are cut.");
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

/// This VM's id: the one that is given, else the kept one, else a new one. Kept in any case, so that a start on
/// which nobody gives one (EC2 did not say it in time) is no start of another VM.
fn vm_id(folder: &Path, given: Option<&VmId>) -> Result<VmId, StartError> {
    let path = folder.join("id");
    let kept = match fs::read_to_string(&path) {
        Ok(text) => Some(text.trim().to_owned()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(StartError::Folder { path, source }),
    };
    let text = match (given, &kept) {
        (Some(given), _) => given.to_string(),
        (None, Some(kept)) => kept.clone(),
        (None, None) => format!("vm-{}", InstanceId::random()),
    };
    let id = VmId::parse(&text).map_err(|source| StartError::Id { path: path.clone(), source })?;
    if kept.as_ref() != Some(&text) {
        write_whole(&path, &text).map_err(|source| StartError::Folder { path, source })?;
    }
    Ok(id)
}

/// A reader sees the whole file or none, whenever the machine stops.
pub(crate) fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension("new");
    let mut file = File::create(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, path)
}
