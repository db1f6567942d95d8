//! A VM that belongs to a fleet: its agent, the listener where gateways bring calls, and the joining that makes them
//! come. Ends in an order in which no call is lost. Used by the program `epsilon-vm-agent` and by tests.
//!
//! ```text
//! bind ─▶ serve ─▶ join, beat … ─▶ told to end, or the cloud takes the VM
//!   ─▶ drain: reports say so at once, calls that still come are refused, running ones end (drain_grace)
//!   ─▶ leave the fleet ─▶ close the listener ─▶ remove instances and network
//! ```

use crate::{app::Agent, config::MemberConfig, drain::Why, error::StartError, serve::Site};
use epsilon_api::{
    fleet::{BEAT, Join, MemberKind, PROTOCOL, REPORT},
    ids::VmId,
    redacted::Secret,
};
use epsilon_cloud_aws::imds::{self, Imds, Notice};
use epsilon_wire::{
    certificate::{self, Certificate},
    door::{Door, Ending},
    join::{Belonging, Settings},
    metrics::Metrics,
    pass::Checker,
};
use futures_util::StreamExt;
use prometheus::TextEncoder;
use std::{future::pending, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How often the end of running calls is looked for while draining.
const LOOK: Duration = Duration::from_millis(20);
/// How long the listener stays open once the drain was reported, also without a call: a gateway that misses the line
/// gets the next one, and no connection closes under a call that is on its way.
const SETTLE: Duration = REPORT;
/// How long answers that were handed over may take to be written.
const FLUSH: Duration = Duration::from_secs(2);

/// A VM that is bound and has not joined yet.
#[derive(Debug)]
pub struct Member {
    agent: Agent,
    parts: Parts,
    drain_grace: Duration,
    cloud: Option<Imds>,
}

/// A VM at work in its fleet.
#[derive(Debug)]
pub struct Running {
    agent: Agent,
    site: Arc<Site>,
    ending: Ending,
    drain_grace: Duration,
    joined: watch::Receiver<Option<String>>,
    taken: watch::Receiver<bool>,
    leave: CancellationToken,
    belonging: JoinHandle<()>,
}

impl Member {
    /// Binds the listener (port 0 takes any) and reads what an earlier life kept. Asks no gateway yet.
    ///
    /// `folder` is the agent's own, `DATA/vm`; `cloud` is asked whether this VM is about to be taken away.
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

    /// As the fleet knows it.
    pub fn id(&self) -> VmId {
        self.agent.front().0.id.clone()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.parts.address
    }

    /// Where collectors read metrics, if anywhere.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.parts.metrics.as_ref().map(Metrics::address)
    }

    /// Serves, joins, and listens to the cloud. Needs a tokio runtime.
    pub fn spawn(self) -> Running {
        let Self { agent, parts, drain_grace, cloud } = self;
        let Parts { door, metrics, certificates, checker, belonging, ending, .. } = parts;
        let site = Site::new(agent.front(), ending.clone());
        let answering = Arc::clone(&site);
        ending.tasks.spawn(door.serve(checker, move |request, interim| {
            Arc::clone(&answering).answer(request, interim)
        }));
        ending.tasks.spawn(Arc::clone(&site).report());
        if let Some(metrics) = metrics {
            let registry = agent.registry().clone();
            let gather = move || TextEncoder::new().encode_to_string(&registry.gather());
            ending.tasks.spawn(metrics.serve(move || gather().unwrap_or_default()));
        }
        let (close, remind) = (ending.close.clone(), certificate::remind(certificates));
        ending.tasks.spawn(close.run_until_cancelled_owned(remind));
        let (takes, taken) = watch::channel(false);
        if let Some(cloud) = cloud {
            let (vm, close) = (Arc::clone(&agent.front().0), ending.close.clone());
            let watching = async move {
                let mut notices = cloud.watch(imds::LOOK);
                while let Some(notice) = notices.next().await {
                    match notice {
                        Notice::SpotInterruption { at } => {
                            tracing::warn!(%at, "The cloud takes this spot VM away; draining.");
                        }
                        Notice::Terminating => {
                            tracing::warn!("The scale group takes this VM away; draining.");
                        }
                        // Nothing has been decided; such a VM often lives on for hours.
                        Notice::Rebalance => {
                            tracing::info!("The cloud may take this spot VM away soon.");
                            continue;
                        }
                    }
                    vm.set_draining(Why::Ending, true);
                    takes.send_replace(true);
                }
            };
            ending.tasks.spawn(async move { close.run_until_cancelled(watching).await });
        }
        let (leave, joined) = (CancellationToken::new(), belonging.joined());
        let belonging = tokio::spawn(belonging.run(leave.clone()));
        Running { agent, site, ending, drain_grace, joined, taken, leave, belonging }
    }
}

impl Running {
    /// Waits until a gateway has let it in; tells where gateways reach it. Cancel-safe.
    pub async fn joined(&self) -> String {
        let mut joined = self.joined.clone();
        match joined.wait_for(Option::is_some).await {
            Ok(address) => address.clone().unwrap_or_default(),
            Err(_) => pending().await, // it is being told to end
        }
    }

    /// Waits until the cloud says that it takes this VM away; then it drains already. Cancel-safe.
    pub async fn taken(&self) {
        let mut taken = self.taken.clone();
        if taken.wait_for(|taken| *taken).await.is_err() {
            pending::<()>().await; // there is no cloud that could
        }
    }

    /// Takes no new calls, lets running ones end within the grace or until `now`, leaves the fleet and removes
    /// everything. Says how many calls were cut.
    pub async fn drain(self, now: impl Future) -> u32 {
        let Self { agent, site, ending, drain_grace, leave, belonging, .. } = self;
        let vm = Arc::clone(&agent.front().0);
        vm.set_draining(Why::Ending, true);
        let settled = Instant::now() + SETTLE;
        let is_over = async {
            while vm.calls() > 0 || (site.readers() > 0 && Instant::now() < settled) {
                sleep(LOOK).await;
            }
        };
        tokio::select! {
            biased; // calls that ended are no calls to cut
            ended = timeout(drain_grace, is_over) => if ended.is_err() {
                tracing::warn!(?drain_grace, "The grace is over.");
            },
            _ = now => {}
        }
        let cut = vm.calls();

        // Gateways that hear the farewell send nothing any more; then the door may close on nobody.
        leave.cancel();
        if let Err(err) = belonging.await {
            tracing::error!(%err, "A bug: the task that belonged to the fleet was lost.");
        }
        ending.close.cancel();
        ending.tasks.close();
        if cut > 0 || timeout(FLUSH, ending.tasks.wait()).await.is_err() {
            ending.cut.cancel();
        }
        agent.shutdown(Duration::ZERO).await;
        cut
    }
}

/// What [`Member::build`] makes beside the agent.
#[derive(Debug)]
struct Parts {
    address: SocketAddr,
    door: Door,
    metrics: Option<Metrics>,
    certificates: Vec<Certificate>,
    checker: Arc<Checker>,
    belonging: Belonging,
    ending: Ending,
}

impl Parts {
    fn build(agent: &Agent, config: &MemberConfig, folder: &Path) -> Result<Self, StartError> {
        let status = agent.vm().status();
        let (server, client) = match &config.tls {
            Some(files) => (Some(files.server()?), Some(files.client()?)),
            None => (None, None),
        };
        let listen = |source| StartError::Listen { key: "listen", address: config.listen, source };
        let (tls, ending) = (server.is_some(), Ending::default());
        let door =
            Door::bind(config.listen, server, config.limits, ending.clone()).map_err(listen)?;
        let address = door.address();
        let certificates = config.tls.as_ref().map(certificate::loaded).transpose()?;
        let certificates: Vec<_> = certificates.into_iter().flatten().collect();
        certificate::register(&certificates, agent.registry())?;
        if let Some(first) = certificates.iter().map(|one| one.not_after).min() {
            _ = agent.front().0.certificate_ends_at.set(first); // an agent joins once
        }
        let key = metrics_key(config)?;
        let metrics = config.metrics.map(|address| {
            let listen = |source| StartError::Listen { key: "metrics", address, source };
            Metrics::bind(address, key, ending.clone()).map_err(listen)
        });
        let checker = Arc::new(Checker::new(status.id.clone()));
        let settings = Settings {
            gateways: config.gateways.clone(),
            token_file: config.token_file.clone(),
            folder: folder.to_owned(),
            tls: client,
            advertise: config.advertise.clone(),
            listens: address,
            beat: BEAT,
        };
        let me = Join {
            protocol: PROTOCOL,
            kind: MemberKind::Vm,
            id: status.id,
            address: String::new(), // filled in when it is known
            tls,
            memory_bytes: status.memory_bytes,
            cpu: status.cpu_millicores,
        };
        let belonging = Belonging::new(settings, me, Arc::clone(&checker))
            .map_err(|source| StartError::Fleet { path: config.token_file.clone(), source })?;
        let metrics = metrics.transpose()?;
        Ok(Self { address, door, metrics, certificates, checker, belonging, ending })
    }
}

/// What collectors on other machines show; an empty file is no key.
fn metrics_key(config: &MemberConfig) -> Result<Option<Secret<String>>, StartError> {
    let Some(path) = &config.metrics_key_file else { return Ok(None) };
    let text = std::fs::read_to_string(path)
        .map_err(|source| StartError::Folder { path: path.clone(), source })?;
    let key = text.trim();
    Ok((!key.is_empty()).then(|| Secret::new(key.to_owned())))
}
