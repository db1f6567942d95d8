//! Composes the parts of `epsilon dev`: gateway and agent of `epsilon up`, on an engine of
//! processes and a builder without images. The path of a call is the platform's own code.
//!
//! ```text
//! caller ─▶ gateway ─▶ (sparing) agent ─▶ process engine ═▶ wrapper ─▶ user code
//! save ─▶ deployment: pack ─▶ dev builder ─▶ start what is in use ─▶ activate ─▶ old instances end
//! ```

use super::{
    builder::DevBuilder,
    engine::{MEMORY, ProcessEngine},
    processes::Processes,
    vm::LazyPrewarmVm,
};
use crate::failure::Failure;
use epsilon_api::{build::Builder, ids::VmId, vm::Vm};
use epsilon_gateway as gateway;
use epsilon_vm_agent as vm_agent;
use std::{error::Error, fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

/// How long running calls may take after Ctrl-C; a second one ends the waiting.
const GRACE: Duration = Duration::from_secs(2);

/// All parts, running.
pub(super) struct Platform {
    agent: vm_agent::app::Agent,
    gateway: gateway::app::Running,
    processes: Arc<Processes>,
    pub(super) calls: SocketAddr,
    pub(super) control: SocketAddr,
}

impl Platform {
    /// Creates and starts them. `folder` is this run's data folder.
    pub(super) async fn start(
        folder: &Path,
        listen: SocketAddr,
        inspect: Option<u16>,
        processes: Arc<Processes>,
    ) -> Result<Self, Failure> {
        let settings = gateway::config::Settings {
            listen,
            control: ([127, 0, 0, 1], 0).into(),
            ..gateway::config::Settings::default()
        };
        let config = gateway::config::Config::new(settings, folder).map_err(|err| unable(&err))?;
        let settings = vm_agent::config::Settings {
            id: VmId::parse("dev").ok(),
            memory: Some(MEMORY),
            ..vm_agent::config::Settings::default()
        };
        let agent = settings.check(folder).map_err(|err| unable(&err))?;
        let work = folder.join("work");
        fs::create_dir_all(&work).map_err(|err| unable(&err))?;
        let database = folder.join("epsilon.db");
        let store = epsilon_store::open(&database.display().to_string()).await;
        let store = store.map_err(|err| unable(&err))?;

        let registry = prometheus::Registry::new();
        let engine = Arc::new(ProcessEngine::new(Arc::clone(&processes), inspect));
        let agent = vm_agent::app::Agent::with_engine(agent, engine, &registry).await;
        let agent = agent.map_err(|err| unable(&err))?;
        let vm: Arc<dyn Vm> = Arc::new(LazyPrewarmVm::new(agent.vm()));
        let builder: Arc<dyn Builder> =
            Arc::new(DevBuilder::new(Arc::clone(&processes), work, inspect.is_some()));
        let gateway =
            gateway::app::App::build(config, store, Some(vm), Some(builder), &registry).await;
        let gateway = gateway.map_err(|err| match &err {
            gateway::app::StartError::Listen { .. } => {
                unable(&err).hint("choose another one with `--port PORT` or `--listen ADDR`")
            }
            _ => unable(&err),
        })?;
        let calls = gateway.public_addr();
        let control = gateway.control_addr();
        tokio::spawn(Arc::clone(&processes).keep_spares());
        Ok(Self { agent, gateway: gateway.spawn(), processes, calls, control })
    }

    /// The VM, for its logs.
    pub(super) fn vm(&self) -> Arc<dyn Vm> {
        self.agent.vm()
    }

    /// Lets running calls finish within the grace, or until `hurry` resolves; then kills all
    /// processes.
    pub(super) async fn end(self, hurry: impl Future<Output = &'static str>) {
        tokio::select! {
            _ = self.gateway.drain(GRACE) => {}
            _ = hurry => {} // cut on request
        }
        self.agent.shutdown(Duration::ZERO).await;
        self.processes.close();
    }
}

fn unable(err: &(dyn Error + 'static)) -> Failure {
    Failure::new("START", "`epsilon dev` cannot start").with_cause(err)
}
