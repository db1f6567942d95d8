//! Who may call a version by its own address, `/name@3`: everyone, callers with the admin key, or
//! no one. A vulnerability that a newer version has fixed remains open at the old address.
//!
//! Used by `call.rs` for such addresses only. A key is looked up as on the control API, with few
//! concurrent lookups: someone who guesses keys slows down only these addresses.

use crate::keys::ApiKeys;
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

/// Concurrent key lookups, and the longest wait for one.
const LOOKUPS: usize = 4;
const LOOKUP_LIMIT: Duration = Duration::from_secs(2);

/// Values of the setting `gateway.version_addresses`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Setting {
    /// Everyone who may call the function may call each of its versions.
    #[default]
    Public,
    /// Only callers that send the admin key as `x-epsilon-key`.
    Key,
    /// Such addresses do not exist.
    Off,
}

/// Checks calls of versions by their own address.
#[derive(Debug)]
pub(crate) struct VersionAddresses {
    setting: Setting,
    keys: Arc<ApiKeys>,
    lookups: Semaphore,
}

impl VersionAddresses {
    pub(crate) fn new(setting: Setting, keys: Arc<ApiKeys>) -> Self {
        Self { setting, keys, lookups: Semaphore::new(LOOKUPS) }
    }

    /// Admits a call, or returns why not.
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
                    Some(key) if self.is_admin_key(key).await => Ok(()),
                    Some(_) | None => Err(CallError::VersionGuarded { function: function.clone() }),
                }
            }
        }
    }

    /// Whether the key is an admin key. A lookup that fails or takes too long counts as no.
    async fn is_admin_key(&self, key: &str) -> bool {
        let lookup = async {
            let _turn = self.lookups.acquire().await.ok()?;
            self.keys.role(key).await.ok().flatten()
        };
        timeout(LOOKUP_LIMIT, lookup).await.ok().flatten() == Some(KeyRole::Admin)
    }
}
