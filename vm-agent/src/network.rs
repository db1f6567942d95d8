//! The one network of this VM's functions: a bridge without traffic between instances and without a way to
//! the cloud's metadata service. A function that wants a network gets this one or none.
//!
//! The engine loses the rule about the metadata service when it restarts, so it is ensured again on a timer.

use crate::engine::{Attachment, Engine, EngineError, NetworkSpec};
use epsilon_api::ids::VmId;
use std::{
    hash::{Hash, Hasher},
    sync::atomic::{AtomicBool, Ordering},
};

#[derive(Debug)]
pub(crate) struct Network {
    spec: NetworkSpec,
    dangerous_allow_metadata: bool,
    /// The network stands and is safe, as far as is known.
    is_safe: AtomicBool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("there is no network for functions")]
    Engine(#[from] EngineError),
    #[error(
        "functions with `network: egress` are refused: the way to 169.254.169.254 cannot be closed; run the \
         agent as root with iptables installed, or set `vm_agent.dangerous_allow_metadata: true`"
    )]
    MetadataOpen(#[source] EngineError),
}

impl Network {
    pub(crate) fn new(vm: &VmId, dangerous_allow_metadata: bool) -> Self {
        // An interface's name has at most 15 bytes, a VM's id up to 63.
        let mut hasher = rapidhash::fast::RapidHasher::default_const();
        vm.as_str().hash(&mut hasher);
        let bridge = format!("eps{:012x}", hasher.finish() >> 16);
        let spec = NetworkSpec { name: format!("epsilon-{vm}"), bridge, vm: vm.clone() };
        Self { spec, dangerous_allow_metadata, is_safe: AtomicBool::new(false) }
    }

    /// Makes the network and closes the way to the metadata service, as far as they are not.
    pub(crate) async fn ensure(&self, engine: &dyn Engine) -> Result<(), NetworkError> {
        let outcome = self.try_ensure(engine).await;
        self.is_safe.store(outcome.is_ok(), Ordering::Release);
        outcome
    }

    async fn try_ensure(&self, engine: &dyn Engine) -> Result<(), NetworkError> {
        engine.ensure_network(&self.spec).await?;
        match engine.close_metadata(&self.spec.bridge).await {
            Err(err) if !self.dangerous_allow_metadata => Err(NetworkError::MetadataOpen(err)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// What a function that may reach the outside is attached to.
    pub(crate) async fn attachment(&self, engine: &dyn Engine) -> Result<Attachment, NetworkError> {
        if !self.is_safe.load(Ordering::Acquire) {
            self.ensure(engine).await?;
        }
        Ok(Attachment::Bridge(self.spec.name.clone()))
    }

    /// The engine turned out not to have it any more.
    pub(crate) fn doubt(&self) {
        self.is_safe.store(false, Ordering::Release);
    }

    /// Takes everything back.
    pub(crate) async fn remove(&self, engine: &dyn Engine) -> Result<(), EngineError> {
        self.is_safe.store(false, Ordering::Release);
        engine.remove_network(&self.spec.name).await?;
        engine.open_metadata(&self.spec.bridge).await
    }
}
