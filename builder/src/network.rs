//! The network of containers that run untrusted code during a build: install scripts and the steps
//! of a Dockerfile. A bridge of the builder's own, without traffic between its containers and
//! without access to the cloud's metadata service, which hands out this machine's credentials.
//!
//! Not for inspection, which has no network, nor for the runtime base, whose commands are ours.
//! Created when first needed, removed when the builder ends. The agent has another one, for
//! instances.

use crate::{
    engine::Engine,
    error::{self, Hint},
};
use epsilon_api::{build::BuildError, chain::Chain};
use std::{env, process::Stdio, time::Duration};
use tokio::{process::Command, sync::Mutex, time::timeout};

const METADATA: &str = "169.254.169.254/32";
/// These run before the kernel decides whether a packet is forwarded or for this machine itself, so
/// one rule covers both. The second is for kernels without the first.
const TABLES: [&str; 2] = ["raw", "mangle"];
/// Seconds that iptables may wait for its lock.
const LOCK_WAIT: &str = "5";
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// The builder's network.
#[derive(Debug)]
pub(crate) struct Network {
    engine: Engine,
    kind: Kind,
    /// Serializes its creation.
    turn: Mutex<()>,
}

#[derive(Debug)]
enum Kind {
    /// The operator's network, used as it is.
    Configured(String),
    /// A network of the builder's own.
    Own { name: String, bridge: String },
}

impl Network {
    /// Creates nothing yet.
    pub(crate) fn new(engine: Engine, given: Option<String>) -> Self {
        let kind = match given {
            Some(name) => Kind::Configured(name),
            None => Kind::Own {
                name: format!("epsilon-builder-{}", engine.owner()),
                // An interface's name has at most 15 bytes; the id has 12.
                bridge: format!("epb{:.12}", engine.owner()),
            },
        };
        Self { engine, kind, turn: Mutex::default() }
    }

    /// Its name, once it exists and the metadata service is blocked. Called before each use: others
    /// may remove unused networks, and rules.
    pub(crate) async fn name(&self) -> Result<String, BuildError> {
        let (name, bridge) = match &self.kind {
            Kind::Configured(name) => return Ok(name.clone()),
            Kind::Own { name, bridge } => (name, bridge),
        };
        let _turn = self.turn.lock().await;
        self.engine.ensure_network(name, bridge).await?;
        block_metadata(bridge).await.map_err(|why| {
            tracing::error!(why, "Access to the metadata service cannot be blocked; refusing installs.");
            error::engine_failed(
                "nothing is installed: access to 169.254.169.254, where this machine's credentials may \
                 lie, cannot be closed",
            )
            .hint(
                "the operator has to run the builder as root with iptables installed, or to configure a safe network: \
                 `builder.install_network: bridge`",
            )
        })?;
        Ok(name.clone())
    }

    /// Removes it. Its containers have to be gone.
    pub(crate) async fn remove(&self) {
        let Kind::Own { name, bridge } = &self.kind else { return };
        let _turn = self.turn.lock().await;
        if let Err(err) = self.engine.remove_network(name).await {
            tracing::warn!(network = name, error = %Chain(&err), "Network of the builder could not be removed; it stays blocked.");
            return; // its rules stay, so containers in it stay blocked
        }
        for table in TABLES {
            while iptables(table, "-C", bridge).await.is_ok() {
                if iptables(table, "-D", bridge).await.is_err() {
                    break;
                }
            }
        }
    }
}

async fn block_metadata(bridge: &str) -> Result<(), String> {
    let mut why = String::new();
    for table in TABLES {
        if iptables(table, "-C", bridge).await.is_ok() {
            return Ok(());
        }
        match iptables(table, "-I", bridge).await {
            Ok(()) => return Ok(()),
            Err(cause) => why = cause,
        }
    }
    Err(why)
}

async fn iptables(table: &str, action: &str, bridge: &str) -> Result<(), String> {
    let path = env::var("PATH").unwrap_or_default();
    let run = Command::new("iptables")
        .args(["-w", LOCK_WAIT, "-t", table, action, "PREROUTING"])
        .args(["-i", bridge, "-d", METADATA, "-j", "DROP"])
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match timeout(COMMAND_TIMEOUT, run).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Ok(Err(err)) => Err(format!("iptables: {err}")),
        Err(_) => Err(format!("iptables took longer than {COMMAND_TIMEOUT:?}")),
    }
}
