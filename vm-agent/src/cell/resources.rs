//! The resources of a cell, from the first directory on: names, container, directories, mount,
//! memory, user id. Dropping them removes the cell; an instance that was assigned the cell owns
//! them and is removed by its own runner.

use super::{Cells, Kind};
use crate::container::budget::Grant;
use crate::container::user_ids::UserIdLease;
use crate::engine::{ContainerName, EngineError};
use crate::layers::Code;
use epsilon_api::{chain::Chain, ids::InstanceId};
use parking_lot::Mutex;
use std::{
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Pause between two attempts to remove a container; doubled up to [`SLOW_REMOVE_PAUSE`].
const FIRST_REMOVE_PAUSE: Duration = Duration::from_millis(50);
const SLOW_REMOVE_PAUSE: Duration = Duration::from_secs(5);

pub(crate) struct CellResources {
    pub(crate) id: InstanceId,
    pub(crate) container: ContainerName,
    /// Cancelled when it must not become a cell any more.
    pub(crate) stop: CancellationToken,
    /// Cancelled when its container is removed: tasks that use it end.
    pub(crate) gone: CancellationToken,
    /// The mounted layers; they stay on disk as long as this is held.
    pub(crate) code: Mutex<Option<Code>>,
    /// Until an instance takes it over.
    pub(crate) memory: Option<Grant>,
    /// The user that its code runs as. Freed once the container is removed.
    pub(crate) user: Option<UserIdLease>,
    /// The engine was requested to create a container.
    has_container: bool,
    /// `None` once another owner removes it, or it is removed. Weak, because they own the ready
    /// cells.
    cells: Option<Weak<Cells>>,
}

impl CellResources {
    /// A new cell's resources: from here on, its id is known on the VM.
    pub(crate) fn new(cells: &Arc<Cells>, memory: Option<Grant>) -> Result<Self, EngineError> {
        let id = InstanceId::random();
        let resources = Self::at(cells, id, memory)?;
        cells.context.known.lock().insert(resources.id.clone());
        Ok(resources)
    }

    /// The resources of a cell of an earlier run.
    pub(crate) fn existing(cells: &Arc<Cells>, id: InstanceId) -> Result<Self, EngineError> {
        let mut resources = Self::at(cells, id, None)?;
        resources.cells = None;
        resources.has_container = true;
        Ok(resources)
    }

    fn at(cells: &Arc<Cells>, id: InstanceId, memory: Option<Grant>) -> Result<Self, EngineError> {
        Ok(Self {
            container: ContainerName::parse(&format!("epsilon-cell-{id}"))?,
            stop: cells.context.closed.child_token(),
            gone: CancellationToken::new(),
            code: Mutex::new(None),
            memory,
            user: None,
            has_container: false,
            cells: Some(Arc::downgrade(cells)),
            id,
        })
    }

    pub(crate) fn app(&self, cells: &Cells) -> PathBuf {
        cells.app(&self.id)
    }

    /// Records that its container is about to be requested from the engine.
    pub(crate) fn note_container(&mut self) {
        self.has_container = true;
    }

    /// Hands the removal over to another owner.
    pub(crate) fn hand_over_removal(mut self) -> Self {
        self.cells = None;
        self
    }

    /// Releases all but the container, once that is removed.
    pub(crate) fn clear(&self, cells: &Cells) {
        self.gone.cancel();
        cells.clear(&self.id);
        drop(self.code.lock().take());
        cells.context.remove_sockets(&self.id);
        cells.context.known.lock().remove(&self.id);
    }
}

impl Drop for CellResources {
    fn drop(&mut self) {
        let Some(cells) = self.cells.take().and_then(|cells| cells.upgrade()) else { return };
        self.stop.cancel();
        let mut memory = self.memory.take();
        if let Some(memory) = &mut memory {
            memory.mark_leaving();
        }
        let resources = Self {
            id: self.id.clone(),
            container: self.container.clone(),
            stop: self.stop.clone(),
            gone: self.gone.clone(),
            code: Mutex::new(self.code.lock().take()),
            memory,
            user: self.user.take(),
            has_container: self.has_container,
            cells: None,
        };
        let task = Arc::clone(&cells);
        cells.context.spawn(async move { remove(&task, resources).await });
    }
}

/// Removes the container, retrying until the engine does it or the agent ends; then the rest.
async fn remove(cells: &Cells, resources: CellResources) {
    let mut pause = FIRST_REMOVE_PAUSE;
    let mut is_first = true;
    while resources.has_container
        && let Err(err) = cells.context.engine.remove(&resources.container).await
    {
        if cells.context.closed.is_cancelled() {
            resources.gone.cancel();
            return; // the shutdown of the agent removes by label what is left
        }
        if std::mem::take(&mut is_first) {
            tracing::warn!(container = %resources.container, error = %Chain(&err), "Container of a cell could not be removed; trying again.");
        }
        sleep(pause).await;
        pause = (pause * 2).min(SLOW_REMOVE_PAUSE);
    }
    resources.clear(cells);
}

impl std::fmt::Debug for CellResources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CellResources").field("id", &self.id).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for super::Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind: &Kind = &self.kind;
        f.debug_struct("Cell")
            .field("id", &self.resources.id)
            .field("kind", kind)
            .finish_non_exhaustive()
    }
}
