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

use crate::engine::{ContainerName, EngineError};
use budget::Grant;
use connections::Connections;
use epsilon_api::{function::Version, ids::InstanceId};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) version: Arc<Version>,
    pub(crate) container: ContainerName,
    pub(crate) asked_at: Timestamp,
    /// Ways to its listeners; there once it started.
    pub(crate) connections: Connections,
    /// Told to go: the container is to be killed, whatever runs in it.
    pub(crate) stop: CancellationToken,
    /// Its state changed so that the runner has to look at its timers again.
    pub(crate) changed: Notify,
    reached: Mutex<Reached>,
    /// Its share of the VM's memory, from the moment it was given out until the container is gone.
    memory: Mutex<Option<Grant>>,
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
        let container =
            ContainerName::parse(&format!("epsilon-{}-{}-{id}", version.function, version.number))?;
        Ok(Self {
            id,
            version,
            container,
            asked_at: Timestamp::now(),
            connections: Connections::new(connection_idle),
            stop: agent_ends.child_token(),
            changed: Notify::new(),
            reached: Mutex::new(Reached::Nothing),
            memory: Mutex::new(None),
        })
    }

    pub(crate) fn reach(&self, reached: Reached) {
        *self.reached.lock() = reached;
    }

    pub(crate) fn reached(&self) -> Reached {
        *self.reached.lock()
    }

    pub(crate) fn keep_memory(&self, grant: Grant) {
        *self.memory.lock() = Some(grant);
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
