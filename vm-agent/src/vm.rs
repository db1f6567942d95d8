//! This VM: its pools of instances on top of what they share (`context.rs`). Decides which pool a
//! call belongs to, which idle instance is evicted when another needs memory, and whether the VM
//! takes calls at all. `service.rs` is how the gateway sees it.

pub(crate) mod census;

use crate::{
    cell::Cells,
    context::{Parts, VmContext},
    drain::DrainReason,
    engine::EngineError,
    instance::{
        Instance,
        pool::{Evictable, Key, Pool, PoolHost},
        runner::Runner,
    },
    keepalive::cost::EvictionClock,
};
use epsilon_api::{
    error::VmError,
    function::{ImageRef, Version},
    ids::{FunctionName, VersionId},
    vm::{ImageRemoval, Keep},
};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{HashMap, HashSet},
    ops::Deref,
    sync::Arc,
};

pub(crate) type Pools = HashMap<VersionId, Arc<Pool>, rapidhash::fast::RandomState>;

/// The instances of this VM, and what they share.
pub(crate) struct LocalVm {
    pub(crate) context: Arc<VmContext>,
    pub(crate) cells: Arc<Cells>,
    pools: RwLock<Pools>,
    /// Deleted functions whose last instance still runs: what it logs is removed with it.
    deleted_functions: Mutex<HashSet<FunctionName>>,
    /// Keep-alive decisions of the last sweep, for the status.
    pub(crate) keeps: Mutex<Vec<Keep>>,
    /// Held while instances are chosen for eviction, so that two starts do not count on the same
    /// ones.
    eviction_clock: Mutex<EvictionClock>,
}

/// The VM gives access to what its parts share.
impl Deref for LocalVm {
    type Target = VmContext;

    fn deref(&self) -> &VmContext {
        &self.context
    }
}

impl LocalVm {
    /// Must be called inside a runtime; its tasks run there.
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let context = VmContext::new(parts);
        Arc::new(Self {
            cells: Cells::open(Arc::clone(&context)),
            context,
            pools: RwLock::default(),
            deleted_functions: Mutex::default(),
            keeps: Mutex::default(),
            eviction_clock: Mutex::default(),
        })
    }

    pub(crate) fn pools(&self) -> Vec<Arc<Pool>> {
        self.pools.read().values().cloned().collect()
    }

    /// The pool of a version; made when there is none. A version of the same number but of another
    /// image comes from another store: the old pool is closed.
    pub(crate) fn pool(self: &Arc<Self>, version: &Arc<Version>) -> Arc<Pool> {
        let id = version.id();
        let is_same = |pool: &Arc<Pool>| {
            Arc::ptr_eq(&pool.version, version)
                || (pool.version.image == version.image && pool.version.spec == version.spec)
        };
        if let Some(pool) = self.pools.read().get(&id).filter(|pool| is_same(pool)) {
            return Arc::clone(pool);
        }
        let mut pools = self.pools.write();
        if let Some(pool) = pools.get(&id).filter(|pool| is_same(pool)) {
            return Arc::clone(pool);
        }
        let pool = Pool::new(
            Arc::clone(&self.context),
            Arc::clone(&self.cells),
            Arc::clone(self) as Arc<dyn PoolHost>,
            Arc::clone(version),
        );
        self.cells.note_version(version);
        let old = pools.insert(id, Arc::clone(&pool));
        self.deleted_functions.lock().remove(&version.function); // it was deployed again
        drop(pools);
        if let Some(old) = old {
            old.close(false);
        }
        pool
    }

    pub(crate) fn pool_for_call(
        self: &Arc<Self>,
        version: &Arc<Version>,
    ) -> Result<Arc<Pool>, VmError> {
        // The pool first: either a drain that begins now sees it, or it sees the drain.
        let pool = self.pool(version);
        if self.is_draining() {
            let function = version.function.clone();
            return Err(VmError::NoCapacity { function, cause: "the VM drains".into() });
        }
        Ok(pool)
    }

    /// Removes an image from this VM unless a version with a pool is made of it.
    pub(crate) async fn remove_image(&self, image: &ImageRef) -> Result<ImageRemoval, EngineError> {
        let is_used = || self.pools.read().values().any(|pool| pool.version.image == *image);
        self.images.remove(&*self.engine, image, is_used).await
    }

    /// Idle instances of other versions, the one of lowest value first; of equal ones, the one idle
    /// longest.
    fn evictable_of_others<'a>(
        pools: &'a [Arc<Pool>],
        needy: &Arc<Pool>,
        clock: EvictionClock,
    ) -> Vec<(Evictable, &'a Arc<Pool>)> {
        let mut idle: Vec<_> = pools
            .iter()
            .filter(|pool| !Arc::ptr_eq(pool, needy))
            .flat_map(|pool| pool.evictable(clock).into_iter().map(move |idle| (idle, pool)))
            .collect();
        idle.sort_unstable_by(|(a, _), (b, _)| {
            a.priority.total_cmp(&b.priority).then((a.since, a.key).cmp(&(b.since, b.key)))
        });
        idle
    }

    /// Records the uses since the last time. Called on a timer.
    pub(crate) fn note_uses(&self, pools: &[Arc<Pool>]) {
        let clock = self.eviction_clock.lock();
        for pool in pools {
            pool.note_uses(*clock);
        }
    }

    /// The function was deleted: its images, history and log go.
    pub(crate) fn forget_function(&self, function: &FunctionName) {
        self.images.forget_function(function);
        self.histories.forget(function);
        if self.pools.read().keys().any(|version| version.function == *function) {
            self.deleted_functions.lock().insert(function.clone());
        }
        self.logs.forget(function.clone());
    }

    /// Closes the pool of a version that serves no more.
    pub(crate) fn retire(&self, version: &VersionId) {
        let pool = self.pools.read().get(version).cloned();
        if let Some(pool) = pool {
            pool.close(false);
        }
    }

    /// Number of running and waiting calls.
    pub(crate) fn calls(&self) -> u32 {
        self.pools().iter().map(|pool| pool.load()).map(|(active, waiting)| active + waiting).sum()
    }

    pub(crate) fn set_draining(&self, why: DrainReason, on: bool) {
        let draining = self.drain.set(why, on);
        for pool in self.pools() {
            if draining { pool.close(true) } else { pool.open() }
        }
    }
}

impl PoolHost for LocalVm {
    fn start_instance(&self, pool: &Arc<Pool>, key: Key, instance: Arc<Instance>) {
        self.known.lock().insert(instance.id().clone());
        // A call may have held on to a pool that was removed meanwhile: it is added again.
        self.pools.write().entry(pool.version.id()).or_insert_with(|| Arc::clone(pool));
        let runner = Runner {
            context: Arc::clone(&self.context),
            cells: Arc::clone(&self.cells),
            pool: Arc::clone(pool),
            key,
            instance,
        };
        self.spawn(runner.run());
    }

    fn forget(&self, pool: &Arc<Pool>) {
        let mut pools = self.pools.write();
        let id = pool.version.id();
        if pools.get(&id).is_some_and(|other| Arc::ptr_eq(other, pool)) {
            pools.remove(&id);
            self.images.invalidate(&pool.version.image); // its next use costs one lookup
        }
        if !pools.keys().any(|other| other.function == id.function) {
            self.metrics.forget(&id.function);
            if self.deleted_functions.lock().remove(&id.function) {
                self.logs.forget(id.function);
            }
        }
    }

    fn can_evict(&self, shortage: u64, needy: &Arc<Pool>) -> bool {
        let clock = *self.eviction_clock.lock();
        memory_of(&Self::evictable_of_others(&self.pools(), needy, clock)) >= shortage
    }

    fn evict(&self, shortage: u64, needy: &Arc<Pool>) -> bool {
        if needy.is_prewarm_only() {
            return false;
        }
        let mut clock = self.eviction_clock.lock();
        let pools = self.pools();
        let idle = Self::evictable_of_others(&pools, needy, *clock);
        if memory_of(&idle) < shortage {
            return false;
        }
        let mut freed = 0;
        for (Evictable { key, priority, .. }, pool) in idle {
            if freed >= shortage {
                break;
            }
            if pool.evict(key) {
                clock.note_eviction(priority);
                freed += pool.version.spec.memory.get();
                self.metrics.evictions.inc();
            }
        }
        freed >= shortage
    }
}

fn memory_of(instances: &[(Evictable, &Arc<Pool>)]) -> u64 {
    instances.iter().map(|(_, pool)| pool.version.spec.memory.get()).sum()
}

impl std::fmt::Debug for LocalVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalVm").field("id", &self.id).finish_non_exhaustive()
    }
}
