//! The parts of one `epsilon up`: created in order of their dependencies, shut down in reverse.
//!
//! ```text
//! store ──┐
//! agent ──┼─▶ gateway (bound) ─▶ runtime base ─▶ gateway serves ─▶ gateway drains ─▶ agent cleans up
//! builder ┘
//! ```

use super::{progress::Progress, settings::Settings};
use crate::failure::Failure;
use epsilon_bootstrap::{metrics, sockets::Sockets};
use epsilon_builder as builder;
use epsilon_gateway as gateway;
use epsilon_vm_agent as vm_agent;
use std::{error::Error, path::Path, time::Duration};
use tracing::{info, warn};

/// How long removing the containers and folders of dropped builds may take: a busy engine takes
/// some seconds.
const BUILDER_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);

/// All parts, created and bound; no call is answered yet.
pub(super) struct Platform {
    agent: vm_agent::app::Agent,
    builder: builder::app::App,
    gateway: gateway::app::App,
    drain_grace: Duration,
}

/// All parts, running.
pub(super) struct Running {
    agent: vm_agent::app::Agent,
    builder: builder::app::App,
    gateway: gateway::app::Running,
    public: String,
    drain_grace: Duration,
}

impl Platform {
    /// Creates all parts. When one of them fails, the others are cleaned up.
    pub(super) async fn build(
        settings: Settings,
        sockets: Sockets,
        data: &Path,
    ) -> Result<Self, Failure> {
        // All settings are checked before anything is created.
        let gateway =
            gateway::config::Config::new(settings.gateway, data).map_err(|e| wrong(&e))?;
        let builder = builder::config::Config::new(settings.builder, &data.join("builder"))
            .map_err(|e| wrong(&e))?;
        let mut agent = settings.vm_agent;
        agent.layer_cache.get_or_insert_with(|| builder.layer_cache());
        let agent = agent.check(data).map_err(|e| wrong(&e))?;
        let database = data.join("epsilon.db");
        let database = database.to_str().ok_or_else(|| {
            Failure::usage(format!("the data folder `{}` is not UTF-8", data.display()))
        })?;

        let registry = prometheus::Registry::new();
        metrics::register_all(&registry, data).map_err(|e| unable(&e))?;
        let store = epsilon_store::open(database).await.map_err(|e| unable(&e))?;
        let agent = vm_agent::app::Agent::build(agent, &registry).await.map_err(|e| unable(&e))?;
        let rest = async {
            let builder = builder::app::App::build(builder).await.map_err(|e| unable(&e))?;
            let hands = Some(builder.builder());
            let vm = Some(agent.vm());
            let gateway =
                gateway::app::App::build_on(sockets, gateway, store, vm, hands, &registry);
            Ok((builder, gateway.await.map_err(|e| no_gateway(&e))?))
        };
        match Box::pin(rest).await {
            Ok((builder, gateway)) => {
                Ok(Self { agent, builder, gateway, drain_grace: settings.drain_grace })
            }
            Err(failure) => {
                agent.shutdown(Duration::ZERO).await;
                Err(failure)
            }
        }
    }

    /// Makes the runtime base if this machine does not have it: minutes at the first start, nothing
    /// later.
    pub(super) async fn ensure_runtime(&mut self) -> Result<(), Failure> {
        // The control API reports the progress meanwhile.
        let progress = Progress::new(self.gateway.open_control());
        match self.builder.ensure_runtime(&progress).await {
            Ok(reference) => {
                info!(reference, "Node runtime base is ready.");
                Ok(())
            }
            Err(err) => Err(Failure::from(err.body())),
        }
    }

    /// Address of the control API.
    pub(super) fn control(&self) -> &gateway::app::ControlAddress {
        self.gateway.control_address()
    }

    /// Whether nothing has been deployed yet.
    pub(super) fn is_empty(&self) -> bool {
        self.gateway.functions() == 0
    }

    /// Starts answering calls.
    pub(super) fn serve(self) -> Running {
        let public = self.gateway.public_url();
        Running {
            agent: self.agent,
            builder: self.builder,
            gateway: self.gateway.spawn(),
            public,
            drain_grace: self.drain_grace,
        }
    }

    /// Cleans up before anything was served.
    pub(super) async fn remove(self) {
        self.builder.shutdown(BUILDER_SHUTDOWN_TIMEOUT).await;
        self.agent.shutdown(Duration::ZERO).await;
    }
}

impl Running {
    /// Where callers reach functions.
    pub(super) fn public_url(&self) -> &str {
        &self.public
    }

    /// Lets running calls finish, or cuts them when the grace period ends or `hurry` resolves; then
    /// removes everything created on the engine. Returns how many calls were cut.
    pub(super) async fn drain(self, hurry: impl Future<Output = &'static str>) -> usize {
        let cut = tokio::select! {
            biased; // an ended drain first
            stopped = self.gateway.drain(self.drain_grace) => stopped.cut,
            signal = hurry => {
                let cut = self.agent.vm().status().calls_active as usize;
                warn!(signal, cut, "Second signal; cutting running calls.");
                cut
            }
        };
        self.builder.shutdown(BUILDER_SHUTDOWN_TIMEOUT).await;
        self.agent.shutdown(Duration::ZERO).await;
        cut
    }
}

/// An unusable setting: exit code 2.
fn wrong(err: &(dyn Error + 'static)) -> Failure {
    Failure::usage("a setting cannot be used").with_cause(err)
}

fn no_gateway(err: &gateway::app::StartError) -> Failure {
    let failure = unable(err);
    match err {
        gateway::app::StartError::Listen { .. } => {
            failure.hint("choose other addresses with `--listen ADDR` and `--control ADDR`")
        }
        gateway::app::StartError::Store(_)
        | gateway::app::StartError::Keys(_)
        | gateway::app::StartError::OwnKey(_)
        | gateway::app::StartError::Tls(_)
        | gateway::app::StartError::Metrics(_) => failure,
    }
}

/// A part that cannot start: exit code 1.
fn unable(err: &(dyn Error + 'static)) -> Failure {
    Failure::new("START", "`epsilon up` cannot start").with_cause(err)
}
