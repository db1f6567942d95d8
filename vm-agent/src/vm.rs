//! This VM: the parts that all instances share, and [`Vm`] on top of them. Decides which pool a
//! call belongs to, which idle instance is evicted when another needs memory, and whether the VM
//! takes calls at all.

pub(crate) mod census;

use crate::call;
use crate::cell::fetch::fetch;
use crate::cell::{Cells, mounts};
use crate::config::Config;
use crate::drain::{Drain, DrainReason};
use crate::engine::{Engine, EngineError};
use crate::images::Images;
use crate::instance::budget::Budget;
use crate::instance::pool::{Evictable, Key, Pool};
use crate::instance::runner::Runner;
use crate::instance::sockets::{Layout, SocketDir};
use crate::instance::state::Moment;
use crate::instance::user_ids::{UserIdLease, UserIds};
use crate::instance::{Instance, sockets};
use crate::keepalive::cost::EvictionClock;
use crate::keepalive::file;
use crate::keepalive::histories::Histories;
use crate::layers::Layers;
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::network::Network;
use epsilon_api::{
    error::CallError,
    function::{ImageRef, Version},
    ids::{FunctionName, InstanceId, VersionId, VmId},
    log::{LogQuery, LogRecord},
    units::MilliCores,
    vm::{Answer, Call, ImageRemoval, Keep, Vm, VmState, VmStatus},
};
use epsilon_bootstrap::remove_untrusted_dir::clear;
use futures_util::{future::BoxFuture, stream::BoxStream};
use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use rand::RngExt;
use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{runtime::Handle, sync::Semaphore, task::JoinHandle, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Directory below the agent's own: one directory for each instance.
const SOCKETS: &str = "sockets";

pub(crate) type Pools = HashMap<VersionId, Arc<Pool>, rapidhash::fast::RandomState>;

pub(crate) struct LocalVm {
    pub(crate) id: VmId,
    /// Part of the status: changes with each start of the agent.
    boot: u64,
    /// The machine's CPUs.
    cpu: MilliCores,
    pub(crate) config: Config,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) images: Images,
    pub(crate) cells: Cells,
    /// Code layers for cells.
    pub(crate) layers: Layers,
    pub(crate) network: Network,
    /// The user ids of instances.
    pub(crate) users: UserIds,
    /// Whether the socket directory of an instance can be a tmpfs of its own.
    are_sockets_bounded: bool,
    pub(crate) budget: Arc<Budget>,
    /// Permits for concurrent starts.
    pub(crate) starts: Semaphore,
    /// The same for starts that no call waits for.
    pub(crate) background_starts: Arc<Semaphore>,
    /// The same for functions whose instances end all the time.
    pub(crate) crash_loop_starts: Arc<Semaphore>,
    pub(crate) logs: Logs,
    pub(crate) metrics: Metrics,
    /// Instances with a runner: reconciliation leaves their containers alone.
    pub(crate) known: Mutex<HashSet<InstanceId>>,
    pub(crate) is_engine_down: AtomicBool,
    /// When the first of its certificates ends; set once they are loaded.
    pub(crate) certificate_ends_at: OnceLock<Timestamp>,
    /// Whether it takes new calls.
    pub(crate) drain: Drain,
    /// Cancelled at shutdown: nothing new, no retries.
    pub(crate) closed: CancellationToken,
    pub(crate) tasks: TaskTracker,
    pools: RwLock<Pools>,
    /// Deleted functions whose last instance still runs: what it logs is removed with it.
    deleted_functions: Mutex<HashSet<FunctionName>>,
    /// Histories of functions, for keep-alive.
    pub(crate) histories: Histories,
    /// Keep-alive decisions of the last sweep, for the status.
    pub(crate) keeps: Mutex<Vec<Keep>>,
    /// Held while instances are chosen for eviction, so that two starts do not count on the same
    /// ones.
    eviction_clock: Mutex<EvictionClock>,
    runtime: Handle,
    epoch: Instant,
}

/// The parts that [`LocalVm::new`] takes.
pub(crate) struct Parts {
    pub(crate) id: VmId,
    pub(crate) cpu: MilliCores,
    pub(crate) config: Config,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) layers: Layers,
    pub(crate) logs: Logs,
    pub(crate) metrics: Metrics,
}

impl LocalVm {
    /// Must be called inside a runtime; its tasks run there.
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts { id, cpu, config, engine, budget, layers, logs, metrics } = parts;
        let cells = Cells::open(&config, &*engine);
        let histories = Histories::restore(file::read(&history_file(&config)));
        Arc::new(Self {
            network: Network::new(&id, &config),
            users: UserIds::new(config.user_ids.clone()),
            are_sockets_bounded: engine.sees_mounts()
                && can_mount_tmpfs(&config.folder.join(SOCKETS)),
            certificate_ends_at: OnceLock::new(),
            drain: Drain::open(config.folder.join("draining")),
            starts: Semaphore::new(config.starts_at_once),
            background_starts: Arc::new(Semaphore::new(config.starts_at_once.div_ceil(2))),
            crash_loop_starts: Arc::new(Semaphore::new(1)),
            id,
            boot: rand::rng().random(),
            cpu,
            config,
            engine,
            images: Images::default(),
            cells,
            layers,
            budget,
            logs,
            metrics,
            known: Mutex::default(),
            is_engine_down: AtomicBool::new(false),
            closed: CancellationToken::new(),
            tasks: TaskTracker::new(),
            pools: RwLock::default(),
            deleted_functions: Mutex::default(),
            histories,
            keeps: Mutex::default(),
            eviction_clock: Mutex::default(),
            runtime: Handle::current(),
            epoch: Instant::now(),
        })
    }

    pub(crate) fn now(&self) -> Moment {
        self.epoch.elapsed()
    }

    /// Runs a task that the shutdown of the agent waits for.
    pub(crate) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn_on(task, &self.runtime)
    }

    pub(crate) fn sockets_root(&self) -> PathBuf {
        self.config.folder.join(SOCKETS)
    }

    pub(crate) fn sockets_dir(&self, instance: &InstanceId) -> PathBuf {
        self.sockets_root().join(instance.as_str())
    }

    /// Makes the socket directory of an instance with this user.
    pub(crate) fn make_sockets(
        &self,
        instance: &InstanceId,
        user: &UserIdLease,
    ) -> io::Result<SocketDir> {
        let layout = Layout {
            user: user.user(),
            has_passwd: user.own_id().is_some(),
            is_bounded: self.are_sockets_bounded,
        };
        SocketDir::create(&self.sockets_dir(instance), layout)
    }

    /// Removes the socket directory of an instance, in the background. Code may have left anything
    /// there, so it runs where blocking is fine.
    pub(crate) fn remove_sockets(&self, instance: &InstanceId) {
        let folder = self.sockets_dir(instance);
        let remove = move || {
            if let Err(err) = sockets::unmount(&folder).and_then(|()| clear(&folder)) {
                tracing::warn!(%err, folder = %folder.display(), "Socket directory of an instance could not be removed; the next start removes it.");
            }
        };
        drop(self.tasks.spawn_blocking_on(remove, &self.runtime));
    }

    pub(crate) fn pools(&self) -> Vec<Arc<Pool>> {
        self.pools.read().values().cloned().collect()
    }

    /// The pool of a version; made when there is none. A version of the same number but of another
    /// image comes from another store: the old pool is closed.
    pub(crate) fn pool(self: &Arc<Self>, version: &Arc<Version>) -> Arc<Pool> {
        let id = version.id();
        let is_same = |pool: &Arc<Pool>| {
            Arc::ptr_eq(&pool.version, version)
                || (pool.version.image == version.image && pool.version.spec == version.spec)
        };
        if let Some(pool) = self.pools.read().get(&id).filter(|pool| is_same(pool)) {
            return Arc::clone(pool);
        }
        let mut pools = self.pools.write();
        if let Some(pool) = pools.get(&id).filter(|pool| is_same(pool)) {
            return Arc::clone(pool);
        }
        let pool = Pool::new(Arc::clone(self), Arc::clone(version));
        self.cells.note_version(version);
        let old = pools.insert(id, Arc::clone(&pool));
        self.deleted_functions.lock().remove(&version.function); // it was deployed again
        drop(pools);
        if let Some(old) = old {
            old.close(false);
        }
        pool
    }

    pub(crate) fn pool_for_call(
        self: &Arc<Self>,
        version: &Arc<Version>,
    ) -> Result<Arc<Pool>, CallError> {
        // The pool first: either a drain that begins now sees it, or it sees the drain.
        let pool = self.pool(version);
        if self.is_draining() {
            let function = version.function.clone();
            return Err(CallError::NoCapacity { function, cause: "the VM drains".into() });
        }
        Ok(pool)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drain.is_on()
    }

    /// Removes a pool that is empty and unwanted.
    pub(crate) fn forget(&self, pool: &Arc<Pool>) {
        let mut pools = self.pools.write();
        let id = pool.version.id();
        if pools.get(&id).is_some_and(|other| Arc::ptr_eq(other, pool)) {
            pools.remove(&id);
            self.images.invalidate(&pool.version.image); // its next use costs one lookup
        }
        if !pools.keys().any(|other| other.function == id.function) {
            self.metrics.forget(&id.function);
            if self.deleted_functions.lock().remove(&id.function) {
                self.logs.forget(id.function);
            }
        }
    }

    /// Removes an image from this VM unless a version with a pool is made of it.
    pub(crate) async fn remove_image(&self, image: &ImageRef) -> Result<ImageRemoval, EngineError> {
        let is_used = || self.pools.read().values().any(|pool| pool.version.image == *image);
        self.images.remove(&*self.engine, image, is_used).await
    }

    /// Starts a new instance in a task of its own.
    pub(crate) fn start_instance(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        key: Key,
        instance: Arc<Instance>,
    ) {
        self.known.lock().insert(instance.id().clone());
        // A call may have held on to a pool that was removed meanwhile: it is added again.
        self.pools.write().entry(pool.version.id()).or_insert_with(|| Arc::clone(pool));
        let runner = Runner { vm: Arc::clone(self), pool: Arc::clone(pool), key, instance };
        self.spawn(runner.run());
    }

    /// Idle instances of other versions, the one of lowest value first; of equal ones, the one idle
    /// longest.
    fn evictable_of_others<'a>(
        pools: &'a [Arc<Pool>],
        needy: &Arc<Pool>,
        clock: EvictionClock,
    ) -> Vec<(Evictable, &'a Arc<Pool>)> {
        let mut idle: Vec<_> = pools
            .iter()
            .filter(|pool| !Arc::ptr_eq(pool, needy))
            .flat_map(|pool| pool.evictable(clock).into_iter().map(move |idle| (idle, pool)))
            .collect();
        idle.sort_unstable_by(|(a, _), (b, _)| {
            a.priority.total_cmp(&b.priority).then((a.since, a.key).cmp(&(b.since, b.key)))
        });
        idle
    }

    /// Whether idle instances of other versions have `shortage` bytes.
    pub(crate) fn can_evict(&self, shortage: u64, needy: &Arc<Pool>) -> bool {
        let clock = *self.eviction_clock.lock();
        memory_of(&Self::evictable_of_others(&self.pools(), needy, clock)) >= shortage
    }

    /// Evicts idle instances of other versions, the one of lowest value first (Greedy-Dual,
    /// `keepalive/cost.rs`), until `shortage` bytes are being freed; all or nothing. Returns whether
    /// they are. Evicts nothing for a prewarm.
    pub(crate) fn evict(&self, shortage: u64, needy: &Arc<Pool>) -> bool {
        if needy.is_prewarm_only() {
            return false;
        }
        let mut clock = self.eviction_clock.lock();
        let pools = self.pools();
        let idle = Self::evictable_of_others(&pools, needy, *clock);
        if memory_of(&idle) < shortage {
            return false;
        }
        let mut freed = 0;
        for (Evictable { key, priority, .. }, pool) in idle {
            if freed >= shortage {
                break;
            }
            if pool.evict(key) {
                clock.note_eviction(priority);
                freed += pool.version.spec.memory.get();
                self.metrics.evictions.inc();
            }
        }
        freed >= shortage
    }

    /// Records the uses since the last time. Called on a timer.
    pub(crate) fn note_uses(&self, pools: &[Arc<Pool>]) {
        let clock = self.eviction_clock.lock();
        for pool in pools {
            pool.note_uses(*clock);
        }
    }

    /// Number of running and waiting calls.
    pub(crate) fn calls(&self) -> u32 {
        self.pools().iter().map(|pool| pool.load()).map(|(active, waiting)| active + waiting).sum()
    }

    pub(crate) fn set_draining(&self, why: DrainReason, on: bool) {
        let draining = self.drain.set(why, on);
        for pool in self.pools() {
            if draining { pool.close(true) } else { pool.open() }
        }
    }

    /// Records whether the container engine answers; returns whether that changed.
    pub(crate) fn set_engine_down(&self, is_down: bool) -> bool {
        let is_changed = self.is_engine_down.swap(is_down, Ordering::Relaxed) != is_down;
        if is_changed {
            self.drain.changed.notify_one();
        }
        is_changed
    }
}

fn can_mount_tmpfs(sockets: &Path) -> bool {
    let tried = mounts::try_tmpfs(sockets).inspect_err(|err| {
        tracing::warn!(
            %err, folder = %sockets.display(),
            "Socket directories of instances have no size limit: this agent cannot mount."
        );
    });
    tried.is_ok()
}

fn memory_of(instances: &[(Evictable, &Arc<Pool>)]) -> u64 {
    instances.iter().map(|(_, pool)| pool.version.spec.memory.get()).sum()
}

/// The file of [`LocalVm::histories`].
pub(crate) fn history_file(config: &Config) -> PathBuf {
    config.folder.join("keep.json")
}

impl std::fmt::Debug for LocalVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalVm").field("id", &self.id).finish_non_exhaustive()
    }
}

/// [`LocalVm`] as the gateway uses it.
#[derive(Debug)]
pub(crate) struct VmService(pub(crate) Arc<LocalVm>);

impl Vm for VmService {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, CallError>> {
        Box::pin(call::handle(&self.0, call))
    }

    fn ensure_ready(&self, version: Arc<Version>) -> BoxFuture<'_, Result<(), CallError>> {
        Box::pin(async move { self.0.pool_for_call(&version)?.ensure_ready().await })
    }

    fn fetch(&self, version: Arc<Version>) -> BoxFuture<'_, Result<(), CallError>> {
        Box::pin(async move {
            let fetched = fetch(&self.0, &version).await;
            let function = version.function.clone();
            fetched.map_err(|cause| CallError::NoCapacity { function, cause })
        })
    }

    fn remove_image(&self, image: ImageRef) -> BoxFuture<'_, Result<ImageRemoval, CallError>> {
        Box::pin(async move {
            let removed = self.0.remove_image(&image).await;
            removed.map_err(|err| CallError::Internal(Box::new(err)))
        })
    }

    fn forget(&self, function: &FunctionName) {
        let vm = &self.0;
        vm.images.forget_function(function);
        vm.histories.forget(function);
        if vm.pools.read().keys().any(|version| version.function == *function) {
            vm.deleted_functions.lock().insert(function.clone());
        }
        vm.logs.forget(function.clone());
    }

    fn retire(&self, version: &VersionId) {
        let pool = self.0.pools.read().get(version).cloned();
        if let Some(pool) = pool {
            pool.close(false);
        }
    }

    fn logs(&self, function: &FunctionName, query: LogQuery) -> BoxStream<'static, LogRecord> {
        self.0.logs.read(function.clone(), query)
    }

    fn status(&self) -> VmStatus {
        let vm = &self.0;
        let pools = vm.pools();
        let (calls_active, calls_waiting) = pools
            .iter()
            .map(|pool| pool.load())
            .fold((0, 0), |(active, waiting), (a, w)| (active + a, waiting + w));
        let mut instances: Vec<_> = pools.iter().flat_map(|pool| pool.statuses()).collect();
        instances.sort_by_key(|instance| instance.started_at);
        let state = if vm.is_draining() {
            VmState::Draining
        } else if vm.is_engine_down.load(Ordering::Relaxed) {
            VmState::EngineDown
        } else {
            VmState::Ready
        };
        VmStatus {
            id: vm.id.clone(),
            state,
            boot: vm.boot,
            version: Some(epsilon_bootstrap::metrics::VERSION.to_owned()),
            certificate_ends_at: vm.certificate_ends_at.get().copied(),
            cpu_millicores: vm.cpu,
            memory_bytes: vm.budget.total(),
            memory_used_bytes: vm.budget.used(),
            calls_active,
            calls_waiting,
            instances,
            cells: vm.cells.count(),
            keeps: vm.keeps.lock().clone(),
            images: vm.images.recent(),
        }
    }

    fn drain(&self, draining: bool) {
        self.0.set_draining(DrainReason::Requested, draining);
    }
}
