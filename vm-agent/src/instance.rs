//! One instance as the rest of the agent sees it: its identity, its connections, the signal to stop
//! it. Its state is in its version's pool (`pool.rs`); its container belongs to its runner
//! (`runner.rs`).

pub(crate) mod lease;
pub(crate) mod pool;
pub(crate) mod runner;
pub(crate) mod state;
pub(crate) mod warnings;

use crate::cell::resources::CellResources;
use crate::container::budget::Grant;
use crate::container::connections::Connections;
use crate::container::user_ids::UserIdLease;
use crate::context::VmContext;
use crate::engine::{ContainerName, EngineError, Freezer};
use epsilon_api::{chain::Chain, function::Version, ids::InstanceId};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{
    panic::resume_unwind,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub(crate) struct Instance {
    /// Its id until it is assigned a cell.
    own_id: InstanceId,
    own_container: ContainerName,
    /// The cell that it was assigned. From then on it has the cell's id and container name, which
    /// the container bears already.
    cell: OnceLock<CellResources>,
    pub(crate) version: Arc<Version>,
    pub(crate) requested_at: Timestamp,
    /// Connections to its listeners; usable once it started.
    pub(crate) connections: Connections,
    /// The order to stop: the container is to end, whatever runs in it.
    pub(crate) stop: CancellationToken,
    /// Its container is removed: no more output comes from it.
    pub(crate) gone: CancellationToken,
    /// Its state changed so that the runner has to read its timers again.
    pub(crate) changed: Notify,
    /// How to freeze its processes while no call runs; looked up when it is needed for the first
    /// time.
    freezer: OnceLock<Option<Box<dyn Freezer>>>,
    is_frozen: AtomicBool,
    progress: Mutex<StartProgress>,
    /// Its share of the VM's memory, from the grant until the container is removed.
    memory: Mutex<Option<Grant>>,
    /// The user id it runs as, unless it is in a cell. Given back with the instance.
    user: OnceLock<UserIdLease>,
    /// Held while the engine creates or starts the container.
    engine_lock: Arc<tokio::sync::Mutex<()>>,
}

/// How far its start got, and so what may have to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartProgress {
    /// The engine got no request.
    Nothing,
    /// A container may exist. It needs no memory.
    Container,
    /// Its process may run.
    Process,
}

impl Instance {
    /// `agent_ends`: stops the instance as well when it is cancelled.
    pub(crate) fn new(
        id: InstanceId,
        version: Arc<Version>,
        connection_idle: Duration,
        agent_ends: &CancellationToken,
    ) -> Result<Self, EngineError> {
        let own_container =
            ContainerName::parse(&format!("epsilon-{}-{}-{id}", version.function, version.number))?;
        Ok(Self {
            own_id: id,
            own_container,
            cell: OnceLock::new(),
            version,
            requested_at: Timestamp::now(),
            connections: Connections::new(connection_idle),
            stop: agent_ends.child_token(),
            gone: CancellationToken::new(),
            changed: Notify::new(),
            freezer: OnceLock::new(),
            is_frozen: AtomicBool::new(false),
            progress: Mutex::new(StartProgress::Nothing),
            memory: Mutex::new(None),
            user: OnceLock::new(),
            engine_lock: Arc::default(),
        })
    }

    /// Its id: the cell's, once it is in one.
    pub(crate) fn id(&self) -> &InstanceId {
        self.cell.get().map_or(&self.own_id, |cell| &cell.id)
    }

    /// The id that it was created with.
    pub(crate) fn original_id(&self) -> &InstanceId {
        &self.own_id
    }

    pub(crate) fn container(&self) -> &ContainerName {
        self.cell.get().map_or(&self.own_container, |cell| &cell.container)
    }

    pub(crate) fn cell(&self) -> Option<&CellResources> {
        self.cell.get()
    }

    /// Assigns a cell: the instance takes over its memory and removes it in the end.
    pub(crate) fn assign_cell(&self, mut cell: CellResources) {
        if let Some(memory) = cell.memory.take() {
            self.add_memory(memory);
        }
        drop(self.cell.set(cell));
        self.note_progress(StartProgress::Process);
    }

    pub(crate) fn note_progress(&self, progress: StartProgress) {
        *self.progress.lock() = progress;
    }

    pub(crate) fn progress(&self) -> StartProgress {
        *self.progress.lock()
    }

    /// Runs an engine request in a task of its own, so that it is awaited to its end even if this
    /// future is dropped: the engine carries it out anyway. A container that is removed while
    /// Docker still creates or starts it may appear afterwards, or leave its endpoint in its
    /// network.
    pub(crate) async fn run_engine_request<F, T>(
        &self,
        context: &VmContext,
        work: F,
    ) -> Result<T, EngineError>
    where
        F: Future<Output = Result<T, EngineError>> + Send + 'static,
        T: Send + 'static,
    {
        let at_work = Arc::clone(&self.engine_lock).lock_owned().await;
        let task = context.spawn(async move {
            let done = work.await;
            drop(at_work);
            done
        });
        task.await.unwrap_or_else(|err| match err.try_into_panic() {
            Ok(panic) => resume_unwind(panic), // reported by the task of the instance
            Err(err) => Err(EngineError::Down(err.into())),
        })
    }

    /// Waits until no engine request for this instance is under way, within a limit.
    pub(crate) async fn wait_for_engine(&self, limit: Duration) {
        drop(timeout(limit, self.engine_lock.lock()).await);
    }

    /// Whether the freezer was looked up, also if there is none.
    pub(crate) fn knows_freezer(&self) -> bool {
        self.freezer.get().is_some()
    }

    /// Sets how its processes are frozen; only the first call counts.
    pub(crate) fn set_freezer(&self, freezer: Option<Box<dyn Freezer>>) {
        drop(self.freezer.set(freezer));
    }

    /// Freezes its processes. Only called under its pool's lock, so that no call begins at the same
    /// time.
    pub(crate) fn freeze(&self) {
        if self.is_frozen.load(Ordering::Relaxed) {
            return;
        }
        let Some(Some(freezer)) = self.freezer.get() else { return };
        match freezer.freeze() {
            Ok(()) => self.is_frozen.store(true, Ordering::Release),
            Err(err) => {
                tracing::warn!(instance = %self.id(), error = %Chain(&err), "Instance could not be frozen.");
            }
        }
    }

    /// Thaws its processes, if they are frozen. Takes some microseconds, once after a long pause.
    pub(crate) fn thaw(&self) {
        if !self.is_frozen.load(Ordering::Acquire) || !self.is_frozen.swap(false, Ordering::AcqRel)
        {
            return;
        }
        if let Some(Some(freezer)) = self.freezer.get()
            && let Err(err) = freezer.thaw()
        {
            self.is_frozen.store(true, Ordering::Release); // the next call tries again
            tracing::error!(instance = %self.id(), error = %Chain(&err), "Instance could not be thawed.");
        }
        self.changed.notify_one(); // its freeze timer runs again
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.is_frozen.load(Ordering::Acquire)
    }

    /// Adds to its share of the memory.
    pub(crate) fn add_memory(&self, grant: Grant) {
        let mut memory = self.memory.lock();
        match memory.as_mut() {
            Some(share) => share.join(grant),
            None => *memory = Some(grant),
        }
    }

    /// Sets the user that it runs as.
    pub(crate) fn set_user(&self, user: UserIdLease) {
        drop(self.user.set(user));
    }

    pub(crate) fn release_memory(&self) {
        let grant = self.memory.lock().take();
        drop(grant);
    }

    /// Carries out `Effect::Stop`: the runner removes the container.
    pub(crate) fn begin_stop(&self) {
        if let Some(grant) = self.memory.lock().as_mut() {
            grant.mark_leaving();
        }
        self.stop.cancel();
    }
}
