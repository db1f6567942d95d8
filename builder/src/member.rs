//! A builder in a fleet: runs its listener and its membership, and ends both in the right order.
//!
//! ```text
//! bind ─▶ serve ─▶ join, heartbeats ─▶ shutdown: leave, refuse new builds, finish builds ─▶ end
//! ```

use crate::{
    app::App,
    config::MemberConfig,
    serve::{self, BoundListener},
};
use epsilon_api::{
    chain::Chain,
    fleet::{HEARTBEAT_INTERVAL, Join, MemberKind, PROTOCOL},
    ids::VmId,
    redacted::Secret,
    units::{Bytes, MilliCores},
};
use epsilon_fleet_link::certificate;
use epsilon_fleet_link::certificate::Certificate;
use epsilon_fleet_link::gateway_token::Verifier;
use epsilon_fleet_link::membership::{Membership, Settings};
use epsilon_fleet_link::metrics::Metrics;
use epsilon_fleet_link::tls::TlsError;
use epsilon_http_server::Shutdown;
use prometheus::{Registry, TextEncoder};
use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, thread, time::Duration};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// How long collectors' connections may take to close after they were cut.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a builder cannot join a fleet.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// The address is in use or not one of this machine.
    #[error("`builder.listen`: cannot listen on {address}")]
    Listen {
        /// The address of the setting.
        address: SocketAddr,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The token's file or the builder's folder.
    #[error("`builder.token_file`, or the builder's stored credential, cannot be read")]
    Files(#[source] io::Error),
    /// The files of the TLS settings.
    #[error("the settings `builder.tls_…` cannot be used")]
    Tls(#[from] TlsError),
    /// The metrics listener's address.
    #[error("`builder.metrics`: cannot listen on {address}")]
    Metrics {
        /// The address of the setting.
        address: SocketAddr,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The file with the key for collectors.
    #[error("`builder.metrics_key_file`: `{}` cannot be read", path.display())]
    MetricsKey {
        /// The file.
        path: PathBuf,
        /// The error of the file system.
        #[source]
        source: io::Error,
    },
    /// The registry already has the builder's metrics.
    #[error("the metrics cannot be registered")]
    Registry(#[from] prometheus::Error),
}

/// A builder that is bound and has not joined yet.
#[derive(Debug)]
pub struct Member {
    id: VmId,
    address: SocketAddr,
    serving: BoundListener,
    membership: Membership,
    certificates: Vec<Certificate>,
    metrics: Option<Metrics>,
    registry: Registry,
    /// Shuts down the metrics listener.
    beside: Shutdown,
}

/// A running builder in its fleet.
#[derive(Debug)]
pub struct Running {
    serving: serve::Running,
    joined: watch::Receiver<Option<String>>,
    membership: JoinHandle<()>,
    end: CancellationToken,
    beside: Shutdown,
}

impl Member {
    /// Binds the listeners (port 0 picks a free one) and reads the stored credential. Contacts no
    /// gateway yet. The metrics listener serves the registry.
    ///
    /// # Errors
    /// [`MemberError`], for the operator.
    pub fn build(
        config: &MemberConfig,
        app: &App,
        registry: &Registry,
    ) -> Result<Self, MemberError> {
        let id = app.member_id();
        let verifier = Arc::new(Verifier::new(id.clone()));
        let (server, client) = match &config.tls {
            Some(files) => (Some(files.server()?), Some(files.client()?)),
            None => (None, None),
        };
        let tls = server.is_some();
        let listen = |source| MemberError::Listen { address: config.listen, source };
        let serving = BoundListener::bind(
            config.listen,
            server,
            config.limits,
            Arc::clone(&verifier),
            app.builder(),
        )
        .map_err(listen)?;
        let address = serving.address();
        let settings = Settings {
            gateways: config.gateways.clone(),
            token_file: config.token_file.clone(),
            folder: config.folder.clone(),
            tls: client,
            advertise: config.advertise.clone(),
            listens: address,
            heartbeat: HEARTBEAT_INTERVAL,
        };
        let me = Join {
            protocol: PROTOCOL,
            kind: MemberKind::Builder,
            id: id.clone(),
            address: address.to_string(),
            tls,
            memory_bytes: Bytes(0),
            cpu: cpus(),
        };
        let membership = Membership::new(settings, me, verifier).map_err(MemberError::Files)?;
        let certificates = config.tls.as_ref().map(certificate::loaded).transpose()?;
        let certificates: Vec<_> = certificates.into_iter().flatten().collect();
        certificate::register(&certificates, registry)?;
        let beside = Shutdown::default();
        let metrics = config.metrics.map(|address| {
            let key = metrics_key(config)?;
            let listen = |source| MemberError::Metrics { address, source };
            Metrics::bind(address, key, beside.clone()).map_err(listen)
        });
        let metrics = metrics.transpose()?;
        let registry = registry.clone();
        Ok(Self { id, address, serving, membership, certificates, metrics, registry, beside })
    }

    /// Its id in the fleet.
    pub fn id(&self) -> &VmId {
        &self.id
    }

    /// The address of its listener.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of its metrics listener, if there is one.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(Metrics::address)
    }

    /// Serves and joins. Needs a tokio runtime.
    pub fn spawn(self) -> Running {
        let end = CancellationToken::new();
        let joined = self.membership.joined();
        let beside = self.beside;
        let registry = self.registry;
        let remind = certificate::remind(self.certificates);
        beside.tasks.spawn(beside.close.clone().run_until_cancelled_owned(remind));
        if let Some(metrics) = self.metrics {
            let gather = move || TextEncoder::new().encode_to_string(&registry.gather());
            beside.tasks.spawn(metrics.serve(move || gather().unwrap_or_default()));
        }
        Running {
            beside,
            serving: self.serving.spawn(),
            joined,
            membership: tokio::spawn(self.membership.run(end.clone())),
            end,
        }
    }
}

impl Running {
    /// Waits until a gateway has accepted it; returns the address at which gateways reach it.
    /// Cancel-safe.
    pub async fn joined(&mut self) -> String {
        match self.joined.wait_for(Option::is_some).await {
            Ok(address) => address.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await, // it is shutting down
        }
    }

    /// Leaves the fleet, refuses new builds, lets running ones finish within the grace. Returns how
    /// many were cut.
    pub async fn drain(self, grace: Duration) -> usize {
        let Self { serving, membership, end, beside, .. } = self;
        end.cancel();
        // Gateways learn that it leaves before the listener closes.
        if let Err(err) = membership.await {
            tracing::error!(error = %Chain(&err), "Membership task panicked; gateways will notice by missing heartbeats.");
        }
        let cut = serving.drain(grace).await;
        beside.close.cancel();
        beside.cut.cancel();
        beside.tasks.close();
        // Connections that are still open end with the process.
        let _ = timeout(CLOSE_TIMEOUT, beside.tasks.wait()).await;
        cut
    }
}

/// The key for collectors on other machines; an empty file is an error.
fn metrics_key(config: &MemberConfig) -> Result<Option<Secret<String>>, MemberError> {
    let Some(path) = &config.metrics_key_file else { return Ok(None) };
    let text = std::fs::read_to_string(path)
        .map_err(|source| MemberError::MetricsKey { path: path.clone(), source })?;
    let key = text.trim();
    Ok((!key.is_empty()).then(|| Secret::new(key.to_owned())))
}

fn cpus() -> MilliCores {
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    MilliCores::from_cores(cores as f64).unwrap_or(MilliCores::ONE)
}
