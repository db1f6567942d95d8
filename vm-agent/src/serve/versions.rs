//! The versions that gateways sent to this agent since its start. A call carries only a version's
//! id, which is resolved here. One short read lock on the path of a call.

use epsilon_api::{function::Version, ids::VersionId};
use parking_lot::RwLock;
use std::{collections::HashMap, sync::Arc};

/// Limit of stored versions: several times what a fleet has. Beyond it all are dropped, and each is
/// sent once more.
const MAX_VERSIONS: usize = 50_000;

#[derive(Debug, Default)]
pub(super) struct Versions(RwLock<HashMap<Box<str>, Arc<Version>, rapidhash::fast::RandomState>>);

impl Versions {
    /// Looks up a version by its id as calls carry it: `name@3`.
    pub(super) fn get(&self, id: &str) -> Option<Arc<Version>> {
        self.0.read().get(id).cloned()
    }

    /// Stores a version. An equal one stays the same object, which its pool recognises without a
    /// comparison.
    pub(super) fn insert(&self, version: Version) -> Arc<Version> {
        let id = version.id().to_string();
        let mut versions = self.0.write();
        if let Some(known) = versions.get(&*id).filter(|known| ***known == version) {
            return Arc::clone(known);
        }
        if versions.len() >= MAX_VERSIONS {
            versions.clear();
        }
        let version = Arc::new(version);
        versions.insert(id.into(), Arc::clone(&version));
        version
    }

    pub(super) fn forget(&self, id: &VersionId) {
        self.0.write().remove(&*id.to_string());
    }
}
