//! Reads all of a function's code as one tree out of its image. Slower than layers, by a container
//! that never runs, and not shared between versions; it works wherever an image does.

use crate::engine::limits::ContainerLimits;
use crate::engine::{Attachment, ContainerName, ContainerSpec, Engine, EngineError};
use crate::labels::Labels;
use bytes::Bytes;
use epsilon_api::{
    chain::Chain,
    function::Version,
    ids::{InstanceId, VmId},
};
use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use std::{collections::HashSet, sync::Arc};

/// The containers that are being read. They carry our labels, so that one of a crashed agent is
/// removed.
#[derive(Debug)]
pub(super) struct Readers {
    vm: VmId,
    limits: ContainerLimits,
    open: Arc<Mutex<HashSet<InstanceId>>>,
}

/// A container while it is read. Once this is dropped, reconciliation removes what is left of it.
#[derive(Debug)]
pub(super) struct Reader {
    id: InstanceId,
    container: ContainerName,
    open: Arc<Mutex<HashSet<InstanceId>>>,
}

impl Readers {
    pub(super) fn new(vm: VmId, limits: ContainerLimits) -> Self {
        Self { vm, limits, open: Arc::default() }
    }

    /// Whether this container is being read.
    pub(super) fn has(&self, id: &InstanceId) -> bool {
        self.open.lock().contains(id)
    }

    /// Creates a container of the version's image.
    pub(super) async fn open(
        &self,
        engine: &dyn Engine,
        version: &Version,
    ) -> Result<Reader, EngineError> {
        let image = engine.ensure_image(&version.image).await?;
        let id = InstanceId::random();
        let container = ContainerName::parse(&format!("epsilon-layers-{id}"))?;
        self.open.lock().insert(id.clone());
        let reader = Reader { id, container, open: Arc::clone(&self.open) };
        let spec = ContainerSpec {
            name: reader.container.clone(),
            image,
            labels: Labels {
                vm: self.vm.clone(),
                instance: reader.id.clone(),
                version: None,
                user: None,
            },
            env: Vec::new(),
            sockets: None,
            mounts: None,
            passwd: None,
            user: "65534:65534".into(), // `nobody`: it never runs
            memory: version.spec.memory,
            cpu: version.spec.cpu,
            network: Attachment::None,
            limits: self.limits.clone(),
        };
        match engine.create(&spec).await {
            Ok(()) => Ok(reader),
            Err(err) => {
                reader.close(engine).await;
                Err(err)
            }
        }
    }
}

impl Reader {
    /// Its code directory, as a tar stream.
    pub(super) async fn code(
        &self,
        engine: &dyn Engine,
    ) -> Result<BoxStream<'static, Result<Bytes, EngineError>>, EngineError> {
        engine.code_of(&self.container).await
    }

    /// Removes the container.
    pub(super) async fn close(self, engine: &dyn Engine) {
        if let Err(err) = engine.remove(&self.container).await {
            tracing::warn!(container = %self.container, error = %Chain(&err), "Container could not be removed; reconciliation will remove it.");
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.open.lock().remove(&self.id);
    }
}
