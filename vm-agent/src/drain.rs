//! Whether this VM accepts new calls, and why not. A requested drain is stored in
//! `DATA/vm/draining`, so that a restarted agent still drains; a drain because of the shutdown of
//! the agent or of its VM is not.
//!
//! `vm.rs` applies it to the pools; the task that reports to gateways waits for [`Drain::news`].

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
pub(crate) enum Why {
    /// An operator, or the autoscaler, requested it, and may revoke it.
    Asked,
    /// The agent or the VM is shutting down. It cannot be revoked.
    Ending,
}

#[derive(Debug)]
pub(crate) struct Drain {
    /// Read on the path of every call.
    is_on: AtomicBool,
    reasons: Mutex<Reasons>,
    note: PathBuf,
    /// Signals a change of this VM that gateways should learn at once.
    pub(crate) news: Notify,
}

#[derive(Debug)]
struct Reasons {
    asked: bool,
    ending: bool,
}

impl Drain {
    /// Restores the state that the last run of this agent stored.
    pub(crate) fn open(note: PathBuf) -> Self {
        let asked = note.exists();
        let reasons = Mutex::new(Reasons { asked, ending: false });
        Self { is_on: AtomicBool::new(asked), reasons, note, news: Notify::new() }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Adds or removes a reason. Returns whether the VM drains now.
    pub(crate) fn set(&self, why: Why, on: bool) -> bool {
        let mut reasons = self.reasons.lock();
        match why {
            Why::Asked if reasons.asked != on => {
                reasons.asked = on;
                if let Err(err) = self.write(on) {
                    tracing::error!(%err, path = %self.note.display(), "Drain could not be stored; it ends with the next start of the agent.");
                }
            }
            Why::Asked => {}
            Why::Ending => reasons.ending = on,
        }
        let is_on = reasons.asked || reasons.ending;
        if self.is_on.swap(is_on, Ordering::Relaxed) != is_on {
            tracing::info!(draining = is_on, ?why, "Drain state of the VM changed.");
            self.news.notify_one();
        }
        is_on
    }

    /// The file's existence is the state.
    fn write(&self, on: bool) -> io::Result<()> {
        if on {
            return File::create(&self.note)?.sync_all();
        }
        match fs::remove_file(&self.note) {
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
        assert!(drain.set(Why::Ending, true));
        assert!(!open().is_on());
        drain.set(Why::Asked, true);
        assert!(open().is_on());
        assert!(drain.set(Why::Asked, false), "a shutdown cannot be revoked");
        assert!(!open().is_on());
    }
}
