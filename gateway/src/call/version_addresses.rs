//! Who may call a version by its own address, `/name@3`: everybody, who has the admin key, or nobody. A hole that a newer
//! version has mended stays open there.
//!
//! Called by `call.rs` for such addresses only. Keys are those that have opened this gateway's control API or were made by it:
//! a stranger who tries keys asks the store nothing.

use crate::keys::Doors;
use epsilon_api::{
    error::CallError,
    headers,
    ids::{FunctionName, VersionNumber},
};
use http::HeaderMap;
use serde::Deserialize;
use std::sync::Arc;

/// The setting `gateway.version_addresses`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Setting {
    /// Who may call the function may call each of its versions.
    #[default]
    Public,
    /// Who sends the admin key as `x-epsilon-key`.
    Key,
    /// Such addresses name nothing.
    Off,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct VersionAddresses {
    setting: Setting,
    keys: Arc<Doors>,
}

impl VersionAddresses {
    pub(crate) fn new(setting: Setting, keys: Arc<Doors>) -> Self {
        Self { setting, keys }
    }

    /// Lets a call through, or says why not.
    pub(crate) fn admit(
        &self,
        function: &FunctionName,
        number: VersionNumber,
        headers: &HeaderMap,
    ) -> Result<(), CallError> {
        match self.setting {
            Setting::Public => Ok(()),
            Setting::Off => Err(CallError::VersionNotFound { function: function.clone(), number }),
            Setting::Key => {
                let key = headers.get(headers::KEY).and_then(|key| key.to_str().ok());
                match key.is_some_and(|key| self.keys.is_known_admin(key)) {
                    true => Ok(()),
                    false => Err(CallError::VersionGuarded { function: function.clone() }),
                }
            }
        }
    }
}
