//! Who may call a version by its own address, `/name@3`: everybody, who has the admin key, or nobody. A hole that a newer
//! version has mended stays open there.
//!
//! Called by `call.rs` for such addresses only. A key is looked up as at the control API, a few at once: a stranger who tries
//! keys takes nothing from others but this.

use crate::keys::Doors;
use epsilon_api::{
    error::CallError,
    headers,
    ids::{FunctionName, VersionNumber},
};
use epsilon_store::KeyRole;
use http::HeaderMap;
use serde::Deserialize;
use std::{sync::Arc, time::Duration};
use tokio::{sync::Semaphore, time::timeout};

/// Keys that are looked up at once, and the longest that one waits for it.
const LOOKUPS: usize = 4;
const LOOKUP_LIMIT: Duration = Duration::from_secs(2);

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
    lookups: Semaphore,
}

impl VersionAddresses {
    pub(crate) fn new(setting: Setting, keys: Arc<Doors>) -> Self {
        Self { setting, keys, lookups: Semaphore::new(LOOKUPS) }
    }

    /// Lets a call through, or says why not.
    pub(crate) async fn admit(
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
                match key {
                    Some(key) if self.opens(key).await => Ok(()),
                    Some(_) | None => Err(CallError::VersionGuarded { function: function.clone() }),
                }
            }
        }
    }

    /// What cannot be looked up in time opens nothing.
    async fn opens(&self, key: &str) -> bool {
        let lookup = async {
            let _turn = self.lookups.acquire().await.ok()?;
            self.keys.role(key).await.ok().flatten()
        };
        timeout(LOOKUP_LIMIT, lookup).await.ok().flatten() == Some(KeyRole::Admin)
    }
}
