//! How the agent knows its own containers again, across its restarts: labels. The spec travels along, so
//! that an adopted instance needs nobody to explain it.

use epsilon_api::{
    function::Version,
    ids::{InstanceId, VmId},
};
use std::{collections::HashMap, sync::Arc};

/// On everything of one VM: containers and networks.
pub const VM: &str = "epsilon.vm";
/// The instance's id.
pub const INSTANCE: &str = "epsilon.instance";
/// The function's name; for people and filters.
pub const FUNCTION: &str = "epsilon.function";
/// The version's number; for people and filters.
pub const VERSION: &str = "epsilon.version";
/// The whole [`Version`] as JSON.
pub const SPEC: &str = "epsilon.spec";
/// On cells: `1`. What a cell serves is not known when it is made; its folder says it, once there is something.
pub const CELL: &str = "epsilon.cell";

/// The user id that the container's code runs as, where it is nobody else's.
pub const USER: &str = "epsilon.user";

/// On images that a builder of ours made: `function` or `runtime`.
pub const IMAGE: &str = "epsilon.image";
/// What names of images in an engine begin with, where a builder of ours gave them.
pub const IMAGE_NAMES: &str = "epsilon/";

/// What a container of ours says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Whose.
    pub vm: VmId,
    /// Which instance.
    pub instance: InstanceId,
    /// What it serves. `None` of a cell: that serves nothing yet when it is made.
    pub version: Option<Arc<Version>>,
    /// The user id that is its own, if it has one.
    pub user: Option<u32>,
}

impl Labels {
    /// As the engine takes them.
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

    /// Reads them back. `None` when one is missing or of another release: such a container is not fit
    /// to be adopted.
    pub fn from_map(map: &HashMap<String, String>) -> Option<Self> {
        let version = match map.contains_key(CELL) {
            true => None,
            false => Some(Arc::new(serde_json::from_str(map.get(SPEC)?).ok()?)),
        };
        Some(Self {
            vm: map.get(VM)?.parse().ok()?,
            instance: map.get(INSTANCE)?.parse().ok()?,
            version,
            user: map.get(USER).and_then(|user| user.parse().ok()),
        })
    }
}
