//! Limits for functions whose images were built elsewhere: the setting `gateway.ceilings`. Projects
//! built by our builder are held to the same limits there (`builder.max_…`), because it reads their
//! settings.

use crate::config::defaults::DEFAULTS;
use epsilon_api::serde_text;
use epsilon_api::units::{Bytes, MilliCores};
use serde::Deserialize;
use std::time::Duration;

/// The setting `gateway.ceilings`.
#[allow(missing_docs, reason = "`config.default.yaml` explains each key")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    #[serde(deserialize_with = "serde_text::duration")]
    pub max_timeout: Duration,
    #[serde(deserialize_with = "serde_text::text")]
    pub max_memory: Bytes,
    #[serde(deserialize_with = "serde_text::cores")]
    pub max_cpu: MilliCores,
    pub max_instances: u32,
}

impl Default for Settings {
    fn default() -> Self {
        DEFAULTS.of("ceilings")
    }
}

/// Longest `idleTimeout`: memory that something else needs is reclaimed long before.
const MAX_IDLE_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// Smallest `memory`: the Node runtime does not start with less.
const MIN_MEMORY: Bytes = Bytes::mib(32);
/// Largest `concurrency`: one process serves no more at once.
const MAX_CONCURRENCY: u32 = 1000;
/// Most functions in one document.
const MAX_FUNCTIONS: usize = 200;

/// All limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ceilings {
    pub(crate) max_timeout: Duration,
    pub(crate) max_idle_timeout: Duration,
    pub(crate) min_memory: Bytes,
    pub(crate) max_memory: Bytes,
    pub(crate) max_cpu: MilliCores,
    pub(crate) max_concurrency: u32,
    pub(crate) max_instances: u32,
    pub(crate) max_functions: usize,
}

impl Ceilings {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            max_timeout: settings.max_timeout,
            max_idle_timeout: MAX_IDLE_TIMEOUT,
            min_memory: MIN_MEMORY,
            max_memory: settings.max_memory,
            max_cpu: settings.max_cpu,
            max_concurrency: MAX_CONCURRENCY,
            max_instances: settings.max_instances,
            max_functions: MAX_FUNCTIONS,
        }
    }
}

impl Default for Ceilings {
    fn default() -> Self {
        Self::new(Settings::default())
    }
}
