//! The versions that gateways told this agent of, in this life of it. A call names its version by id only; what
//! the id means is here. One short lock on the path of a call, for reading.

use epsilon_api::{function::Version, ids::VersionId};
use parking_lot::RwLock;
use std::{collections::HashMap, sync::Arc};

/// Versions that are kept, at most: several times what a fleet holds. Beyond it all are forgotten, which costs
/// each one more telling.
const KEPT: usize = 50_000;

#[derive(Debug, Default)]
pub(super) struct Versions(RwLock<HashMap<Box<str>, Arc<Version>, rapidhash::fast::RandomState>>);

impl Versions {
    /// By its id as calls carry it: `name@3`.
    pub(super) fn get(&self, id: &str) -> Option<Arc<Version>> {
        self.0.read().get(id).cloned()
    }

    /// Keeps it. Told again, it stays the same one, which its pool knows without comparing it.
    pub(super) fn learn(&self, version: Version) -> Arc<Version> {
        let id = version.id().to_string();
        let mut versions = self.0.write();
        if let Some(known) = versions.get(&*id).filter(|known| ***known == version) {
            return Arc::clone(known);
        }
        if versions.len() >= KEPT {
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
