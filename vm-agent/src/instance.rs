//! One instance as the rest of the agent sees it: who it is, how to reach it, how to tell it to go. Its
//! state lives in its version's pool (`pool.rs`), its container belongs to its runner (`runner.rs`).

pub(crate) mod budget;
pub(crate) mod connections;
pub(crate) mod control;
pub(crate) mod pool;
pub(crate) mod runner;
pub(crate) mod sockets;
pub(crate) mod start;
pub(crate) mod state;
pub(crate) mod unsettled;
pub(crate) mod user_ids;
pub(crate) mod warnings;

use crate::{
    cell::place::Place,
    engine::{ContainerName, EngineError, Freezer},
    vm::LocalVm,
};
use budget::Grant;
use connections::Connections;
use epsilon_api::{function::Version, ids::InstanceId};
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
use user_ids::Lease;

#[derive(Debug)]
pub(crate) struct Instance {
    /// By what it goes until it is in a cell.
    own_id: InstanceId,
    own_container: ContainerName,
    /// The cell that it is in: from then on it goes by the cell's names, which the container bears already.
    cell: OnceLock<Place>,
    pub(crate) version: Arc<Version>,
    pub(crate) asked_at: Timestamp,
    /// Ways to its listeners; there once it started.
    pub(crate) connections: Connections,
    /// Told to go: the container is to end, whatever runs in it.
    pub(crate) stop: CancellationToken,
    /// Its container is away: nothing comes of its output any more.
    pub(crate) gone: CancellationToken,
    /// Its state changed so that the runner has to look at its timers again.
    pub(crate) changed: Notify,
    /// The way to stop its processes while nobody calls; asked for when it is first of use.
    freezer: OnceLock<Option<Box<dyn Freezer>>>,
    is_frozen: AtomicBool,
    reached: Mutex<Reached>,
    /// Its share of the VM's memory, from the moment it was given out until the container is gone.
    memory: Mutex<Option<Grant>>,
    /// Who it runs as, where it is not a cell's user. Given back with the instance.
    user: OnceLock<Lease>,
    /// Held while the engine makes or starts the container.
    engine_at_work: Arc<tokio::sync::Mutex<()>>,
}

/// How far its start got: what may have to be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// The engine was not asked for anything.
    Nothing,
    /// There may be a container. It needs no memory.
    Container,
    /// It may run.
    Process,
}

impl Instance {
    /// `agent_ends`: when that is cancelled, the instance is to go as well.
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
            asked_at: Timestamp::now(),
            connections: Connections::new(connection_idle),
            stop: agent_ends.child_token(),
            gone: CancellationToken::new(),
            changed: Notify::new(),
            freezer: OnceLock::new(),
            is_frozen: AtomicBool::new(false),
            reached: Mutex::new(Reached::Nothing),
            memory: Mutex::new(None),
            user: OnceLock::new(),
            engine_at_work: Arc::default(),
        })
    }

    /// Its id; another one once it is in a cell.
    pub(crate) fn id(&self) -> &InstanceId {
        self.cell.get().map_or(&self.own_id, |cell| &cell.id)
    }

    /// The id that it was asked for by.
    pub(crate) fn first_id(&self) -> &InstanceId {
        &self.own_id
    }

    pub(crate) fn container(&self) -> &ContainerName {
        self.cell.get().map_or(&self.own_container, |cell| &cell.container)
    }

    pub(crate) fn cell(&self) -> Option<&Place> {
        self.cell.get()
    }

    /// It is in this cell from now on, with the memory that the cell has, and clears it away in the end.
    pub(crate) fn move_into(&self, mut cell: Place) {
        if let Some(memory) = cell.memory.take() {
            self.keep_memory(memory);
        }
        drop(self.cell.set(cell));
        self.reach(Reached::Process);
    }

    pub(crate) fn reach(&self, reached: Reached) {
        *self.reached.lock() = reached;
    }

    pub(crate) fn reached(&self) -> Reached {
        *self.reached.lock()
    }

    /// Asks the engine for something that it would do even if nobody waited for its answer any more: so somebody
    /// does, in a task of its own. A container that is removed while Docker still makes or starts it may come
    /// into being after that, or leave its place in its network behind.
    pub(crate) async fn have_engine<F, T>(&self, vm: &LocalVm, work: F) -> Result<T, EngineError>
    where
        F: Future<Output = Result<T, EngineError>> + Send + 'static,
        T: Send + 'static,
    {
        let at_work = Arc::clone(&self.engine_at_work).lock_owned().await;
        let task = vm.spawn(async move {
            let done = work.await;
            drop(at_work);
            done
        });
        task.await.unwrap_or_else(|err| match err.try_into_panic() {
            Ok(panic) => resume_unwind(panic), // told by the task of the instance
            Err(err) => Err(EngineError::Down(err.into())),
        })
    }

    /// Waits until the engine does nothing for this instance, within a limit.
    pub(crate) async fn engine_is_done(&self, limit: Duration) {
        drop(timeout(limit, self.engine_at_work.lock()).await);
    }

    /// Whether it is known how its processes are stopped, or that they cannot be.
    pub(crate) fn knows_freezer(&self) -> bool {
        self.freezer.get().is_some()
    }

    /// How its processes are stopped; once.
    pub(crate) fn set_freezer(&self, freezer: Option<Box<dyn Freezer>>) {
        drop(self.freezer.set(freezer));
    }

    /// Stops its processes. Only under its pool's lock, so that no call begins in the same moment.
    pub(crate) fn freeze(&self) {
        if self.is_frozen.load(Ordering::Relaxed) {
            return;
        }
        let Some(Some(freezer)) = self.freezer.get() else { return };
        match freezer.freeze() {
            Ok(()) => self.is_frozen.store(true, Ordering::Release),
            Err(err) => {
                tracing::warn!(instance = %self.id(), %err, "Instance could not be frozen.");
            }
        }
    }

    /// Lets them go on, if they were stopped: some microseconds, once after a long pause.
    pub(crate) fn thaw(&self) {
        if !self.is_frozen.load(Ordering::Acquire) || !self.is_frozen.swap(false, Ordering::AcqRel)
        {
            return;
        }
        if let Some(Some(freezer)) = self.freezer.get()
            && let Err(err) = freezer.thaw()
        {
            self.is_frozen.store(true, Ordering::Release); // the next one tries again
            tracing::error!(instance = %self.id(), %err, "Instance could not be thawed.");
        }
        self.changed.notify_one(); // its timer of freezing runs again
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.is_frozen.load(Ordering::Acquire)
    }

    /// Adds to its share.
    pub(crate) fn keep_memory(&self, grant: Grant) {
        let mut memory = self.memory.lock();
        match memory.as_mut() {
            Some(share) => share.join(grant),
            None => *memory = Some(grant),
        }
    }

    /// It runs as this user.
    pub(crate) fn keep_user(&self, user: Lease) {
        drop(self.user.set(user));
    }

    pub(crate) fn give_memory_back(&self) {
        let grant = self.memory.lock().take();
        drop(grant);
    }

    /// Carries out `Effect::Kill`: the runner takes the container away.
    pub(crate) fn begin_stop(&self) {
        if let Some(grant) = self.memory.lock().as_mut() {
            grant.leave();
        }
        self.stop.cancel();
    }
}
