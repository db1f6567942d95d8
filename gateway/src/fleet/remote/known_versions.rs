//! Which versions an agent knows. It forgets them when it restarts; its reports show that by their
//! `boot`.

use crate::fleet::view::VersionKey;
use parking_lot::RwLock;
use std::collections::HashSet;

/// The versions that the agent of one VM knows. Read by every call, so it stores 8 bytes per
/// version and no name.
#[derive(Debug, Default)]
pub(super) struct KnownVersions(RwLock<Known>);

#[derive(Debug, Default)]
struct Known {
    boot: u64,
    versions: HashSet<VersionKey, rapidhash::fast::RandomState>,
}

impl KnownVersions {
    /// Whether the agent knows the version.
    pub(super) fn knows(&self, version: VersionKey) -> bool {
        self.0.read().versions.contains(&version)
    }

    /// The boot number of the agent's last report.
    pub(super) fn boot(&self) -> u64 {
        self.0.read().boot
    }

    /// The agent of that boot knows the version now; ignored if the agent has restarted since.
    pub(super) fn add(&self, version: VersionKey, boot: u64) {
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
    pub(super) fn invalidate_versions(&self) {
        self.0.write().versions.clear();
    }

    /// A report of this boot was received.
    pub(super) fn set_boot(&self, boot: u64) {
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
        let known_versions = KnownVersions::default();
        known_versions.set_boot(7);
        known_versions.add(key, known_versions.boot());
        assert!(known_versions.knows(key));
        known_versions.set_boot(7);
        assert!(known_versions.knows(key), "the same boot");
        known_versions.set_boot(8);
        assert!(!known_versions.knows(key));
        known_versions.add(key, 7);
        assert!(!known_versions.knows(key), "that was the agent of the previous boot");
        known_versions.add(key, 8);
        known_versions.invalidate_versions();
        assert!(!known_versions.knows(key), "its report stream broke off");
        known_versions.add(key, 8);
        known_versions.forget(key);
        assert!(!known_versions.knows(key));
    }
}
