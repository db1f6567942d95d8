//! The one network of this VM's functions: a bridge without traffic between instances, and without
//! access to this machine, its networks and the cloud's metadata service. A function with
//! `network: egress` gets this one or none.
//!
//! The engine loses rules when it restarts, and a machine may get other networks, so they are
//! ensured again on a timer.

pub(crate) mod reach;

use crate::{
    config::Config,
    engine::{Attachment, Engine, EngineError, NetworkSpec},
};
use epsilon_api::ids::VmId;
use reach::Reach;
use std::{
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

#[derive(Debug)]
pub(crate) struct Network(Arc<Bridge>);

#[derive(Debug)]
struct Bridge {
    spec: NetworkSpec,
    reach: Reach,
    dangerous_allow_metadata: bool,
    /// The network exists and is safe, as far as is known.
    is_safe: AtomicBool,
    /// Held while the network is made or removed. Once `true`, it was removed for good.
    is_removed: tokio::sync::Mutex<bool>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("there is no network for functions")]
    Engine(#[from] EngineError),
    #[error(
        "functions with `network: egress` are refused: this machine and 169.254.169.254 cannot be \
         closed to them; run the agent as root with iptables installed, or set `vm_agent.dangerous_allow_metadata: true`"
    )]
    NoFirewall(#[source] EngineError),
}

impl Network {
    pub(crate) fn new(vm: &VmId, config: &Config) -> Self {
        // An interface's name has at most 15 bytes, a VM's id up to 63.
        let mut hasher = rapidhash::fast::RapidHasher::default_const();
        vm.as_str().hash(&mut hasher);
        let bridge = format!("eps{:012x}", hasher.finish() >> 16);
        let spec = NetworkSpec { name: format!("epsilon-{vm}"), bridge, vm: vm.clone() };
        Self(Arc::new(Bridge {
            spec,
            reach: config.reach.clone(),
            dangerous_allow_metadata: config.dangerous_allow_metadata,
            is_safe: AtomicBool::new(false),
            is_removed: tokio::sync::Mutex::new(false),
        }))
    }

    /// Creates the network and its firewall if they are missing. In a task of its own: the caller
    /// may be cancelled meanwhile, and the engine would create a network that is never removed.
    pub(crate) async fn ensure(&self, engine: &Arc<dyn Engine>) -> Result<(), NetworkError> {
        let bridge = Arc::clone(&self.0);
        let engine = Arc::clone(engine);
        let task = tokio::spawn(async move { bridge.ensure(&*engine).await });
        task.await.unwrap_or_else(|err| Err(EngineError::Down(err.into()).into()))
    }

    /// The attachment of a function with egress.
    pub(crate) async fn attachment(
        &self,
        engine: &Arc<dyn Engine>,
    ) -> Result<Attachment, NetworkError> {
        if !self.0.is_safe.load(Ordering::Acquire) {
            self.ensure(engine).await?;
        }
        Ok(Attachment::Bridge(self.0.spec.name.clone()))
    }

    /// Marks the network as missing: the next start creates it.
    pub(crate) fn invalidate(&self) {
        self.0.is_safe.store(false, Ordering::Release);
    }

    /// Removes network and firewall for good; waits for a creation in progress. The firewall is
    /// removed also if the engine keeps the network, unless containers are left that it isolates
    /// from this machine.
    pub(crate) async fn remove(
        &self,
        engine: &dyn Engine,
        has_containers: bool,
    ) -> Result<(), EngineError> {
        let bridge = &self.0;
        let mut is_removed = bridge.is_removed.lock().await;
        *is_removed = true;
        bridge.is_safe.store(false, Ordering::Release);
        let removed = engine.remove_network(&bridge.spec.name).await;
        if removed.is_err() && has_containers {
            return removed;
        }
        removed.and(engine.remove_firewall(&bridge.spec.bridge).await)
    }
}

impl Bridge {
    async fn ensure(&self, engine: &dyn Engine) -> Result<(), NetworkError> {
        let is_removed = self.is_removed.lock().await;
        if *is_removed {
            return Err(EngineError::Refused("the agent ends".into()).into());
        }
        let outcome = self.make(engine).await;
        self.is_safe.store(outcome.is_ok(), Ordering::Release);
        outcome
    }

    async fn make(&self, engine: &dyn Engine) -> Result<(), NetworkError> {
        engine.ensure_network(&self.spec).await?;
        match engine.ensure_firewall(&self.reach.firewall(&self.spec.bridge)).await {
            Err(err) if !self.dangerous_allow_metadata => Err(NetworkError::NoFirewall(err)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
