//! The rule that keeps functions from the cloud's metadata service, where the VM's own credentials lie. It
//! stands in Docker's own chain for such rules, which all traffic of its bridges passes first. Needs root
//! and iptables.

use crate::engine::EngineError;
use std::{process::Stdio, time::Duration};
use tokio::{process::Command, time::timeout};

const METADATA: &str = "169.254.169.254/32";
const CHAIN: &str = "DOCKER-USER";
/// Seconds that iptables may wait for its lock.
const LOCK_WAIT: &str = "5";
const PATIENCE: Duration = Duration::from_secs(10);

/// Refused at once when the kernel can, else dropped.
const TARGETS: [&str; 2] = ["REJECT", "DROP"];

pub(super) async fn close(bridge: &str) -> Result<(), EngineError> {
    for target in TARGETS {
        if iptables("-C", bridge, target).await.is_ok() {
            return Ok(());
        }
    }
    let mut refusal = iptables("-I", bridge, TARGETS[0]).await;
    if refusal.is_err() {
        refusal = iptables("-I", bridge, TARGETS[1]).await;
    }
    refusal.map_err(EngineError::Refused)
}

pub(super) async fn open(bridge: &str) -> Result<(), EngineError> {
    for target in TARGETS {
        while iptables("-C", bridge, target).await.is_ok() {
            iptables("-D", bridge, target).await.map_err(EngineError::Refused)?;
        }
    }
    Ok(())
}

async fn iptables(action: &str, bridge: &str, target: &str) -> Result<(), String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let run = Command::new("iptables")
        .args(["-w", LOCK_WAIT, action, CHAIN, "-i", bridge, "-d", METADATA, "-j", target])
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
