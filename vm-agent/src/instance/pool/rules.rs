//! What the state of a pool decides by: the limits of its version and of the operator. Plain
//! values, fixed when the pool is made.

use crate::config::Config;
use crate::instance::state::Policy;
use epsilon_api::function::{FunctionSpec, Idle, Isolation};
use std::time::Duration;

pub(super) struct Rules {
    pub(super) policy: Policy,
    /// Calls that one instance serves at once.
    pub(super) concurrency: usize,
    pub(super) min_instances: u32,
    pub(super) max_instances: u32,
    /// Most starts of the version in progress.
    pub(super) starts_at_once: usize,
    /// Most calls that wait for a slot.
    pub(super) queue_depth: usize,
    /// How long an instance is idle before its processes are frozen; `None`: never.
    pub(super) freeze_after: Option<Duration>,
    /// The operator's keep-alive time, for instances beside the last one.
    pub(super) idle_default: Duration,
}

impl Rules {
    pub(super) fn new(spec: &FunctionSpec, config: &Config) -> Self {
        let one_call = spec.isolation == Isolation::Call;
        Self {
            policy: Policy { timeout: spec.timeout, one_call },
            concurrency: if one_call { 1 } else { spec.concurrency.get() as usize },
            min_instances: spec.min_instances,
            max_instances: spec.max_instances.get(),
            starts_at_once: config.starts_per_version,
            queue_depth: config.queue_depth,
            freeze_after: match spec.idle {
                Idle::Freeze => config.freeze_after,
                Idle::Run => None,
            },
            idle_default: config.keep.default,
        }
    }
}
