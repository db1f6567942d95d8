//! What every part of the agent on a VM shares: settings, engine, images, layers, network, memory,
//! logs, metrics, the shutdown. Cells, instances and pools use it; it knows none of them;
//! `vm.rs` puts those on top.

use crate::config::Config;
use crate::container::budget::Budget;
use crate::container::sockets::{Layout, SocketDir};
use crate::container::user_ids::{UserIdLease, UserIds};
use crate::container::{mounts, sockets};
use crate::drain::Drain;
use crate::engine::Engine;
use crate::images::Images;
use crate::keepalive::file;
use crate::keepalive::histories::Histories;
use crate::layers::Layers;
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::moment::Moment;
use crate::network::Network;
use epsilon_api::{
    chain::Chain,
    ids::{InstanceId, VmId},
    units::MilliCores,
};
use epsilon_bootstrap::remove_untrusted_dir::clear;
use jiff::Timestamp;
use parking_lot::Mutex;
use rand::RngExt;
use std::{
    collections::HashSet,
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

pub(crate) struct VmContext {
    pub(crate) id: VmId,
    /// Part of the status: changes with each start of the agent.
    pub(crate) boot: u64,
    /// The machine's CPUs.
    pub(crate) cpu: MilliCores,
    pub(crate) config: Config,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) images: Images,
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
    /// End of the certificate that ends first; set once certificates are loaded.
    pub(crate) certificate_ends_at: OnceLock<Timestamp>,
    /// Whether it takes new calls.
    pub(crate) drain: Drain,
    /// Cancelled at shutdown: nothing new, no retries.
    pub(crate) closed: CancellationToken,
    pub(crate) tasks: TaskTracker,
    /// Histories of functions, for keep-alive.
    pub(crate) histories: Histories,
    runtime: Handle,
    epoch: Instant,
}

/// The parts that [`VmContext::new`] takes.
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

impl VmContext {
    /// Must be called inside a runtime; its tasks run there.
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts { id, cpu, config, engine, budget, layers, logs, metrics } = parts;
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
            layers,
            budget,
            logs,
            metrics,
            known: Mutex::default(),
            is_engine_down: AtomicBool::new(false),
            closed: CancellationToken::new(),
            tasks: TaskTracker::new(),
            histories,
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
                tracing::warn!(error = %Chain(&err), folder = %folder.display(), "Socket directory of an instance could not be removed; the next start removes it.");
            }
        };
        drop(self.tasks.spawn_blocking_on(remove, &self.runtime));
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drain.is_on()
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
            error = %Chain(err), folder = %sockets.display(),
            "Socket directories of instances have no size limit: this agent cannot mount."
        );
    });
    tried.is_ok()
}

/// The file of [`VmContext::histories`].
pub(crate) fn history_file(config: &Config) -> PathBuf {
    config.folder.join("keep.json")
}

impl std::fmt::Debug for VmContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmContext").field("id", &self.id).finish_non_exhaustive()
    }
}
