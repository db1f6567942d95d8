//! What a pool needs of its VM beyond what all pools share: the task of an instance, and memory
//! that other pools could give back. Implemented by `vm.rs`.

use super::{Key, Pool};
use crate::instance::Instance;
use std::sync::Arc;

pub(crate) trait PoolHost: Send + Sync {
    /// Runs a new instance in a task of its own.
    fn start_instance(&self, pool: &Arc<Pool>, key: Key, instance: Arc<Instance>);

    /// Removes a pool that is empty and unwanted.
    fn forget(&self, pool: &Arc<Pool>);

    /// Whether idle instances of other versions have `shortage` bytes.
    fn can_evict(&self, shortage: u64, needy: &Arc<Pool>) -> bool;

    /// Evicts idle instances of other versions, the one of lowest value first (Greedy-Dual,
    /// `keepalive/cost.rs`), until `shortage` bytes are being freed; all or nothing. Returns
    /// whether they are. Evicts nothing for a prewarm.
    fn evict(&self, shortage: u64, needy: &Arc<Pool>) -> bool;
}
