//! Labels, by which the agent recognises its containers across restarts. They carry the whole
//! version, so that an instance can be adopted without the gateway.

use epsilon_api::{
    function::Version,
    ids::{InstanceId, VmId},
};
use std::{collections::HashMap, sync::Arc};

/// The VM's id; on all its containers and networks.
pub const VM: &str = "epsilon.vm";
/// The instance's id.
pub const INSTANCE: &str = "epsilon.instance";
/// The function's name; for people and filters.
pub const FUNCTION: &str = "epsilon.function";
/// The version's number; for people and filters.
pub const VERSION: &str = "epsilon.version";
/// The whole [`Version`] as JSON.
pub const SPEC: &str = "epsilon.spec";
/// On cells: `1`. The version that a cell serves is unknown when it is made; its directory records
/// it later.
pub const CELL: &str = "epsilon.cell";

/// The user id of the container's code, unless it is shared.
pub const USER: &str = "epsilon.user";

/// On images that an Epsilon builder made: `function` or `runtime`.
pub const IMAGE: &str = "epsilon.image";
/// Prefix of image names that a builder gives in an engine.
pub const IMAGE_NAMES: &str = "epsilon/";

/// The labels of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// The VM that it belongs to.
    pub vm: VmId,
    /// The instance, or the cell.
    pub instance: InstanceId,
    /// The version that it serves. `None` for a cell.
    pub version: Option<Arc<Version>>,
    /// Its own user id, if it has one.
    pub user: Option<u32>,
}

impl Labels {
    /// As a map, for the engine.
    pub fn to_map(&self) -> HashMap<String, String> {
        let mut all = vec![(VM, self.vm.to_string()), (INSTANCE, self.instance.to_string())];
        all.extend(self.user.map(|user| (USER, user.to_string())));
        match &self.version {
            Some(version) => all.extend([
                (FUNCTION, version.function.to_string()),
                (VERSION, version.number.to_string()),
                (SPEC, serde_json::to_string(&**version).unwrap_or_default()),
            ]),
            None => all.push((CELL, "1".to_owned())),
        }
        all.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Parses them. `None` when one is missing or of another release: such a container cannot be
    /// adopted.
    pub fn from_map(map: &HashMap<String, String>) -> Option<Self> {
        let version = if map.contains_key(CELL) {
            None
        } else {
            Some(Arc::new(serde_json::from_str(map.get(SPEC)?).ok()?))
        };
        Some(Self {
            vm: map.get(VM)?.parse().ok()?,
            instance: map.get(INSTANCE)?.parse().ok()?,
            version,
            user: map.get(USER).and_then(|user| user.parse().ok()),
        })
    }
}
