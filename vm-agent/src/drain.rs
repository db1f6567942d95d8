//! Whether this VM takes new calls, and why not. A drain that somebody asked for is kept in `DATA/vm/draining`, so
//! that an agent that starts again still drains; one that comes with the end of the agent or of its VM is over
//! when that is.
//!
//! What follows for pools is `vm.rs`'s business; whoever reports on the VM waits for [`Drain::news`].

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
    /// An operator, or the autoscaler, asked for it; and may ask for its end.
    Asked,
    /// The agent is about to end, or the VM is. There is no way back.
    Ending,
}

#[derive(Debug)]
pub(crate) struct Drain {
    /// On the path of every call.
    is_on: AtomicBool,
    reasons: Mutex<Reasons>,
    note: PathBuf,
    /// Something about this VM changed that gateways should not have to wait for.
    pub(crate) news: Notify,
}

#[derive(Debug)]
struct Reasons {
    asked: bool,
    ending: bool,
}

impl Drain {
    /// As the last life of this agent left it.
    pub(crate) fn open(note: PathBuf) -> Self {
        let asked = note.exists();
        let reasons = Mutex::new(Reasons { asked, ending: false });
        Self { is_on: AtomicBool::new(asked), reasons, note, news: Notify::new() }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Adds a reason or takes it away. Says whether the VM drains now.
    pub(crate) fn set(&self, why: Why, on: bool) -> bool {
        let mut reasons = self.reasons.lock();
        match why {
            Why::Asked if reasons.asked != on => {
                reasons.asked = on;
                if let Err(err) = self.write(on) {
                    tracing::error!(%err, path = %self.note.display(), "The drain is not kept; it ends with the next start.");
                }
            }
            Why::Asked => {}
            Why::Ending => reasons.ending = on,
        }
        let is_on = reasons.asked || reasons.ending;
        if self.is_on.swap(is_on, Ordering::Relaxed) != is_on {
            tracing::info!(draining = is_on, ?why, "Drain.");
            self.news.notify_one();
        }
        is_on
    }

    /// The file's existence is all that it says.
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
    fn a_drain_that_was_asked_for_outlives_the_agent_and_an_ending_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Drain::open(folder.path().join("draining"));
        let drain = open();
        assert!(!drain.is_on());
        assert!(drain.set(Why::Ending, true));
        assert!(!open().is_on());
        drain.set(Why::Asked, true);
        assert!(open().is_on());
        assert!(drain.set(Why::Asked, false), "nobody can take back the end of the agent");
        assert!(!open().is_on());
    }
}
