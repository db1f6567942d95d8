//! A VM in a fleet: its agent, the listener for gateways' calls, and the membership that makes
//! gateways send them. Shuts down in an order in which no call is lost. Used by the program
//! `epsilon-vm-agent` and by tests.
//!
//! ```text
//! bind ─▶ serve ─▶ join, heartbeat … ─▶ signal, or the cloud takes the VM
//!   ─▶ drain: reports say so at once, new calls are refused, running ones end (drain_grace)
//!   ─▶ leave the fleet ─▶ close the listener ─▶ remove instances and network
//! ```

use crate::{
    app::Agent, config::MemberConfig, drain::DrainReason, error::StartError, serve::Server,
};
use epsilon_api::{
    chain::Chain,
    fleet::{HEARTBEAT_INTERVAL, Join, MemberKind, PROTOCOL, REPORT},
    ids::VmId,
    redacted::Secret,
};
use epsilon_cloud_aws::imds::{self, Imds, Notice};
use epsilon_fleet_link::authenticated_listener::AuthenticatedListener;
use epsilon_fleet_link::certificate;
use epsilon_fleet_link::certificate::Certificate;
use epsilon_fleet_link::gateway_token::Verifier;
use epsilon_fleet_link::membership::{Membership, Settings};
use epsilon_fleet_link::metrics::Metrics;
use epsilon_http_server::Shutdown;
use futures_util::StreamExt;
use prometheus::TextEncoder;
use std::{future::pending, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How often the number of running calls is read while draining.
const POLL_EVERY: Duration = Duration::from_millis(20);
/// How long the listener stays open once the drain was reported, also without a call: a gateway
/// that misses the report gets the next one, and no connection closes under a call that is being
/// sent.
const REPORT_GRACE: Duration = REPORT;
/// How long to wait for answers to be written to their connections.
const FLUSH: Duration = Duration::from_secs(2);

/// A VM that is bound and has not joined yet.
#[derive(Debug)]
pub struct Member {
    agent: Agent,
    parts: Parts,
    drain_grace: Duration,
    cloud: Option<Imds>,
}

/// A VM that serves its fleet.
#[derive(Debug)]
pub struct Running {
    agent: Agent,
    server_state: Arc<Server>,
    shutdown: Shutdown,
    drain_grace: Duration,
    joined: watch::Receiver<Option<String>>,
    reclaimed: watch::Receiver<bool>,
    leave: CancellationToken,
    membership: JoinHandle<()>,
}

impl Member {
    /// Binds the listener (port 0 takes any) and reads stored credentials. Sends nothing to a
    /// gateway yet.
    ///
    /// `folder` is the agent's own, `DATA/vm`; `cloud` is polled for notices that this VM will be
    /// taken away.
    ///
    /// # Errors
    /// [`StartError`], for the operator; and the agent, which still runs.
    pub fn build(
        agent: Agent,
        config: MemberConfig,
        folder: &Path,
        cloud: Option<Imds>,
    ) -> Result<Self, Box<(StartError, Agent)>> {
        match Parts::build(&agent, &config, folder) {
            Ok(parts) => Ok(Self { agent, parts, drain_grace: config.drain_grace, cloud }),
            Err(err) => Err(Box::new((err, agent))),
        }
    }

    /// The VM's id in the fleet.
    pub fn id(&self) -> VmId {
        self.agent.service().0.id.clone()
    }

    /// The address of the listener.
    pub fn address(&self) -> SocketAddr {
        self.parts.address
    }

    /// The address of the metrics listener, if there is one.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.parts.metrics.as_ref().map(Metrics::address)
    }

    /// Serves, joins, and polls the cloud's notices. Needs a tokio runtime.
    pub fn spawn(self) -> Running {
        let Self { agent, parts, drain_grace, cloud } = self;
        let Parts { listener, metrics, certificates, verifier, membership, shutdown, .. } = parts;
        let server_state = Server::new(agent.service(), shutdown.clone());
        let answering = Arc::clone(&server_state);
        shutdown.tasks.spawn(listener.serve(verifier, move |request, interim| {
            Arc::clone(&answering).answer(request, interim)
        }));
        shutdown.tasks.spawn(Arc::clone(&server_state).report());
        if let Some(metrics) = metrics {
            let registry = agent.registry().clone();
            let gather = move || TextEncoder::new().encode_to_string(&registry.gather());
            shutdown.tasks.spawn(metrics.serve(move || gather().unwrap_or_default()));
        }
        let close = shutdown.close.clone();
        let remind = certificate::remind(certificates);
        shutdown.tasks.spawn(close.run_until_cancelled_owned(remind));
        let (reclaim, reclaimed) = watch::channel(false);
        if let Some(cloud) = cloud {
            let vm = Arc::clone(&agent.service().0);
            let close = shutdown.close.clone();
            let watching = async move {
                let mut notices = cloud.watch(imds::POLL_EVERY);
                while let Some(notice) = notices.next().await {
                    match notice {
                        Notice::SpotInterruption { at } => {
                            tracing::warn!(%at, "Cloud takes this spot VM away; draining.");
                        }
                        Notice::Terminating => {
                            tracing::warn!("Auto Scaling group terminates this VM; draining.");
                        }
                        // Nothing is decided yet; such a VM often runs on for hours.
                        Notice::Rebalance => {
                            tracing::info!("Cloud may take this spot VM away soon; serving on.");
                            continue;
                        }
                    }
                    vm.set_draining(DrainReason::Shutdown, true);
                    reclaim.send_replace(true);
                }
            };
            shutdown.tasks.spawn(async move { close.run_until_cancelled(watching).await });
        }
        let leave = CancellationToken::new();
        let joined = membership.joined();
        let membership = tokio::spawn(membership.run(leave.clone()));
        Running { agent, server_state, shutdown, drain_grace, joined, reclaimed, leave, membership }
    }
}

impl Running {
    /// Waits until a gateway has accepted the VM; returns the address by which gateways reach it.
    /// Cancel-safe.
    pub async fn joined(&self) -> String {
        let mut joined = self.joined.clone();
        match joined.wait_for(Option::is_some).await {
            Ok(address) => address.clone().unwrap_or_default(),
            Err(_) => pending().await, // the membership has ended
        }
    }

    /// Waits until the cloud announces that it takes this VM away; then it drains already.
    /// Cancel-safe.
    pub async fn reclaimed(&self) {
        let mut reclaimed = self.reclaimed.clone();
        if reclaimed.wait_for(|reclaimed| *reclaimed).await.is_err() {
            pending::<()>().await; // the VM is not in a cloud
        }
    }

    /// Takes no new calls, waits for running ones within the grace period or until `now`, leaves
    /// the fleet and removes everything. Returns how many calls were cut.
    pub async fn drain(self, now: impl Future) -> u32 {
        let Self { agent, server_state, shutdown, drain_grace, leave, membership, .. } = self;
        let vm = Arc::clone(&agent.service().0);
        vm.set_draining(DrainReason::Shutdown, true);
        let settled = Instant::now() + REPORT_GRACE;
        let is_over = async {
            while vm.calls() > 0 || (server_state.readers() > 0 && Instant::now() < settled) {
                sleep(POLL_EVERY).await;
            }
        };
        tokio::select! {
            biased; // if all calls ended, none is cut
            ended = timeout(drain_grace, is_over) => if ended.is_err() {
                tracing::warn!(?drain_grace, "`vm_agent.drain_grace` is over; running calls are cut.");
            },
            _ = now => {}
        }
        let cut = vm.calls();

        // A gateway that received the last report sends no more calls; so none meets a closed
        // listener.
        leave.cancel();
        if let Err(err) = membership.await {
            tracing::error!(error = %Chain(&err), "Task of the fleet membership was lost (a bug).");
        }
        shutdown.close.cancel();
        shutdown.tasks.close();
        if cut > 0 || timeout(FLUSH, shutdown.tasks.wait()).await.is_err() {
            shutdown.cut.cancel();
        }
        agent.shutdown(Duration::ZERO).await;
        cut
    }
}

/// What [`Member::build`] makes besides the agent.
#[derive(Debug)]
struct Parts {
    address: SocketAddr,
    listener: AuthenticatedListener,
    metrics: Option<Metrics>,
    certificates: Vec<Certificate>,
    verifier: Arc<Verifier>,
    membership: Membership,
    shutdown: Shutdown,
}

impl Parts {
    fn build(agent: &Agent, config: &MemberConfig, folder: &Path) -> Result<Self, StartError> {
        let status = agent.vm().status();
        let (server, client) = match &config.tls {
            Some(files) => (Some(files.server()?), Some(files.client()?)),
            None => (None, None),
        };
        let listen = |source| StartError::Listen { key: "listen", address: config.listen, source };
        let tls = server.is_some();
        let shutdown = Shutdown::default();
        let listener =
            AuthenticatedListener::bind(config.listen, server, config.limits, shutdown.clone())
                .map_err(listen)?;
        let address = listener.address();
        let certificates = config.tls.as_ref().map(certificate::loaded).transpose()?;
        let certificates: Vec<_> = certificates.into_iter().flatten().collect();
        certificate::register(&certificates, agent.registry())?;
        if let Some(first) = certificates.iter().map(|one| one.not_after).min() {
            _ = agent.service().0.certificate_ends_at.set(first); // an agent joins once
        }
        let key = metrics_key(config)?;
        let metrics = config.metrics.map(|address| {
            let listen = |source| StartError::Listen { key: "metrics", address, source };
            Metrics::bind(address, key, shutdown.clone()).map_err(listen)
        });
        let verifier = Arc::new(Verifier::new(status.id.clone()));
        let settings = Settings {
            gateways: config.gateways.clone(),
            token_file: config.token_file.clone(),
            folder: folder.to_owned(),
            tls: client,
            advertise: config.advertise.clone(),
            listens: address,
            heartbeat: HEARTBEAT_INTERVAL,
        };
        let me = Join {
            protocol: PROTOCOL,
            kind: MemberKind::Vm,
            id: status.id,
            address: String::new(), // set once it is known
            tls,
            memory_bytes: status.memory_bytes,
            cpu: status.cpu_millicores,
        };
        let membership = Membership::new(settings, me, Arc::clone(&verifier))
            .map_err(|source| StartError::Fleet { path: config.token_file.clone(), source })?;
        let metrics = metrics.transpose()?;
        Ok(Self { address, listener, metrics, certificates, verifier, membership, shutdown })
    }
}

/// The key that collectors on other machines send; an empty file is no key.
fn metrics_key(config: &MemberConfig) -> Result<Option<Secret<String>>, StartError> {
    let Some(path) = &config.metrics_key_file else { return Ok(None) };
    let text = std::fs::read_to_string(path)
        .map_err(|source| StartError::Folder { path: path.clone(), source })?;
    let key = text.trim();
    Ok((!key.is_empty()).then(|| Secret::new(key.to_owned())))
}
