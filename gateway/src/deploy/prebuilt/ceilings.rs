//! Limits for functions whose images were built elsewhere: the setting `gateway.ceilings`. Projects
//! built by our builder are held to the same limits there (`builder.max_…`), because it reads their
//! settings.

use epsilon_api::serde_text;
use epsilon_api::units::{Bytes, MilliCores};
use serde::Deserialize;
use std::time::Duration;

/// The setting `gateway.ceilings`. Every key may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Largest `timeout`. Default `15m`: a connection should not be held open longer.
    #[serde(deserialize_with = "serde_text::duration")]
    pub max_timeout: Duration,
    /// Largest `idleTimeout`. Default `24h`.
    #[serde(deserialize_with = "serde_text::duration")]
    pub max_idle_timeout: Duration,
    /// Smallest `memory`. Default `32MiB`: the Node runtime does not start with less.
    #[serde(deserialize_with = "serde_text::text")]
    pub min_memory: Bytes,
    /// Largest `memory`. Default `8GiB`.
    #[serde(deserialize_with = "serde_text::text")]
    pub max_memory: Bytes,
    /// Largest `cpu`, in cores. Default `16`.
    #[serde(deserialize_with = "serde_text::cores")]
    pub max_cpu: MilliCores,
    /// Largest `concurrency`. Default 1,000.
    pub max_concurrency: u32,
    /// Largest `maxInstances`. Default 1,000.
    pub max_instances: u32,
    /// Most functions in one document. Default 200.
    pub max_functions: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_timeout: Duration::from_secs(15 * 60),
            max_idle_timeout: Duration::from_secs(24 * 60 * 60),
            min_memory: Bytes::mib(32),
            max_memory: Bytes::mib(8 << 10),
            max_cpu: MilliCores(16_000),
            max_concurrency: 1000,
            max_instances: 1000,
            max_functions: 200,
        }
    }
}
