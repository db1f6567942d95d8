//! Which versions an agent knows. It forgets them when it restarts; its reports show that by their
//! `boot`.

use crate::fleet::view::VersionKey;
use parking_lot::RwLock;
use std::collections::HashSet;

/// The versions that the agent of one VM knows. Read by every call, so it stores 8 bytes per
/// version and no name.
#[derive(Debug, Default)]
pub(super) struct Told(RwLock<Known>);

#[derive(Debug, Default)]
struct Known {
    boot: u64,
    versions: HashSet<VersionKey, rapidhash::fast::RandomState>,
}

impl Told {
    /// Whether the agent knows the version.
    pub(super) fn knows(&self, version: VersionKey) -> bool {
        self.0.read().versions.contains(&version)
    }

    /// The boot number of the agent's last report.
    pub(super) fn boot(&self) -> u64 {
        self.0.read().boot
    }

    /// The agent of that boot knows the version now; ignored if the agent has restarted since.
    pub(super) fn learn(&self, version: VersionKey, boot: u64) {
        let mut known = self.0.write();
        if known.boot == boot {
            known.versions.insert(version);
        }
    }

    /// The agent does not know the version after all.
    pub(super) fn forget(&self, version: VersionKey) {
        self.0.write().versions.remove(&version);
    }

    /// The agent may have restarted: every version has to be announced again.
    pub(super) fn doubt(&self) {
        self.0.write().versions.clear();
    }

    /// A report of this boot was received.
    pub(super) fn in_boot(&self, boot: u64) {
        if self.boot() != boot {
            *self.0.write() = Known { boot, ..Known::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_restart_forgets_all_versions() {
        let key = VersionKey::of_version(&testing::version("pay", 1));
        let told = Told::default();
        told.in_boot(7);
        told.learn(key, told.boot());
        assert!(told.knows(key));
        told.in_boot(7);
        assert!(told.knows(key), "the same boot");
        told.in_boot(8);
        assert!(!told.knows(key));
        told.learn(key, 7);
        assert!(!told.knows(key), "that was the agent of the previous boot");
        told.learn(key, 8);
        told.doubt();
        assert!(!told.knows(key), "its report stream broke off");
        told.learn(key, 8);
        told.forget(key);
        assert!(!told.knows(key));
    }
}
