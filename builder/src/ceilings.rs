//! The operator's ceilings for functions. Part of the builder's settings; the manifest is checked
//! against them, so that a developer learns of it at the deployment and not at a call.

use epsilon_api::units::{Bytes, MilliCores};
use std::time::Duration;

/// The bounds of a function's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ceilings {
    /// Largest `timeout`. Default 15 min, as long as a connection should be held open.
    pub timeout: Duration,
    /// Largest `idleTimeout`. Default 24 h.
    pub idle_timeout: Duration,
    /// Smallest `memory`. Default 32 MiB: the Node runtime alone does not start below.
    pub memory_floor: Bytes,
    /// Largest `memory`. Default 8 GiB.
    pub memory: Bytes,
    /// Largest `cpu`. Default 16 cores.
    pub cpu: MilliCores,
    /// Largest `concurrency`. Default 1,000.
    pub concurrency: u32,
    /// Largest `maxInstances` and `minInstances`. Default 1,000.
    pub max_instances: u32,
    /// Functions in one project. Default 200.
    pub functions: usize,
}

impl Default for Ceilings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(15 * 60),
            idle_timeout: Duration::from_secs(24 * 60 * 60),
            memory_floor: Bytes::mib(32),
            memory: Bytes::mib(8 << 10),
            cpu: MilliCores(16_000),
            concurrency: 1000,
            max_instances: 1000,
            functions: 200,
        }
    }
}
