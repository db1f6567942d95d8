//! The rules that keep functions from the cloud's metadata service, where the VM's own credentials lie. One
//! stands in Docker's own chain for such rules, which all that its bridges forward passes first; one
//! where packets for the VM itself arrive, for a proxy of the service that listens here. Need root and
//! iptables.

use crate::engine::EngineError;
use std::{process::Stdio, time::Duration};
use tokio::{process::Command, time::timeout};

const METADATA: &str = "169.254.169.254/32";
const CHAINS: [&str; 2] = ["DOCKER-USER", "INPUT"];
/// Seconds that iptables may wait for its lock.
const LOCK_WAIT: &str = "5";
const PATIENCE: Duration = Duration::from_secs(10);

/// Refused at once when the kernel can, else dropped.
const TARGETS: [&str; 2] = ["REJECT", "DROP"];

pub(super) async fn close(bridge: &str) -> Result<(), EngineError> {
    for chain in CHAINS {
        close_in(chain, bridge).await.map_err(EngineError::Refused)?;
    }
    Ok(())
}

pub(super) async fn open(bridge: &str) -> Result<(), EngineError> {
    for (chain, target) in CHAINS.into_iter().flat_map(|chain| TARGETS.map(|t| (chain, t))) {
        while iptables("-C", chain, bridge, target).await.is_ok() {
            iptables("-D", chain, bridge, target).await.map_err(EngineError::Refused)?;
        }
    }
    Ok(())
}

async fn close_in(chain: &str, bridge: &str) -> Result<(), String> {
    for target in TARGETS {
        if iptables("-C", chain, bridge, target).await.is_ok() {
            return Ok(());
        }
    }
    match iptables("-I", chain, bridge, TARGETS[0]).await {
        Ok(()) => Ok(()),
        Err(_) => iptables("-I", chain, bridge, TARGETS[1]).await,
    }
}

async fn iptables(action: &str, chain: &str, bridge: &str, target: &str) -> Result<(), String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let run = Command::new("iptables")
        .args(["-w", LOCK_WAIT, action, chain, "-i", bridge, "-d", METADATA, "-j", target])
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match timeout(PATIENCE, run).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            Err(format!("iptables: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Ok(Err(err)) => Err(format!("iptables: {err}")),
        Err(_) => Err(format!("iptables took longer than {PATIENCE:?}")),
    }
}
