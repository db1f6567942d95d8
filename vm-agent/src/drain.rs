//! Whether this VM accepts new calls, and why not. A requested drain is stored in
//! `DATA/vm/draining`, so that a restarted agent still drains; a drain because of the shutdown of
//! the agent or of its VM is not.
//!
//! `vm.rs` applies it to the pools; the task that reports to gateways waits for [`Drain::changed`].

use epsilon_api::chain::Chain;
use parking_lot::Mutex;
use std::{
    fs::{self, File},
    io,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};
use tokio::sync::Notify;

/// Why a VM drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DrainReason {
    /// An operator, or the autoscaler, requested it, and may revoke it.
    Requested,
    /// The agent or the VM is shutting down. It cannot be revoked.
    Shutdown,
}

#[derive(Debug)]
pub(crate) struct Drain {
    /// Read on the path of every call.
    is_on: AtomicBool,
    reasons: Mutex<Reasons>,
    marker: PathBuf,
    /// Signals a change of this VM that gateways should learn at once.
    pub(crate) changed: Notify,
}

#[derive(Debug)]
struct Reasons {
    requested: bool,
    shutdown: bool,
}

impl Drain {
    /// Restores the state that the last run of this agent stored.
    pub(crate) fn open(marker: PathBuf) -> Self {
        let requested = marker.exists();
        let reasons = Mutex::new(Reasons { requested, shutdown: false });
        Self { is_on: AtomicBool::new(requested), reasons, marker, changed: Notify::new() }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Adds or removes a reason. Returns whether the VM drains now.
    pub(crate) fn set(&self, why: DrainReason, on: bool) -> bool {
        let mut reasons = self.reasons.lock();
        match why {
            DrainReason::Requested if reasons.requested != on => {
                reasons.requested = on;
                if let Err(err) = self.write(on) {
                    tracing::error!(error = %Chain(&err), path = %self.marker.display(), "Drain could not be stored; it ends with the next start of the agent.");
                }
            }
            DrainReason::Requested => {}
            DrainReason::Shutdown => reasons.shutdown = on,
        }
        let is_on = reasons.requested || reasons.shutdown;
        if self.is_on.swap(is_on, Ordering::Relaxed) != is_on {
            if is_on {
                tracing::info!(?why, "VM drains; running calls finish.");
            } else {
                tracing::info!(?why, "VM takes calls again.");
            }
            self.changed.notify_one();
        }
        is_on
    }

    /// The file's existence is the state.
    fn write(&self, on: bool) -> io::Result<()> {
        if on {
            return File::create(&self.marker)?.sync_all();
        }
        match fs::remove_file(&self.marker) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requested_drain_outlives_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Drain::open(folder.path().join("draining"));
        let drain = open();
        assert!(!drain.is_on());
        assert!(drain.set(DrainReason::Shutdown, true));
        assert!(!open().is_on());
        drain.set(DrainReason::Requested, true);
        assert!(open().is_on());
        assert!(drain.set(DrainReason::Requested, false), "a shutdown cannot be revoked");
        assert!(!open().is_on());
    }
}
