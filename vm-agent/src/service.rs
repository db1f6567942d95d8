//! The VM as the gateway uses it: the trait [`Vm`] on top of [`LocalVm`]. In one process the
//! gateway calls it directly; in a fleet `serve.rs` does.

use crate::{call, cell::fetch::fetch, drain::DrainReason, vm::LocalVm};
use epsilon_api::{
    error::VmError,
    function::{ImageRef, Version},
    ids::{FunctionName, VersionId},
    log::{LogQuery, LogRecord},
    vm::{Answer, Call, ImageRemoval, Vm, VmState, VmStatus},
};
use futures_util::{future::BoxFuture, stream::BoxStream};
use std::sync::{Arc, atomic::Ordering};

/// [`LocalVm`] as the gateway uses it.
#[derive(Debug)]
pub(crate) struct VmService(pub(crate) Arc<LocalVm>);

impl Vm for VmService {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, VmError>> {
        Box::pin(call::handle(&self.0, call))
    }

    fn ensure_ready(&self, version: Arc<Version>) -> BoxFuture<'_, Result<(), VmError>> {
        Box::pin(async move { self.0.pool_for_call(&version)?.ensure_ready().await })
    }

    fn fetch(&self, version: Arc<Version>) -> BoxFuture<'_, Result<(), VmError>> {
        Box::pin(async move {
            let fetched = fetch(&self.0.cells, &version).await;
            let function = version.function.clone();
            fetched.map_err(|cause| VmError::NoCapacity { function, cause })
        })
    }

    fn remove_image(&self, image: ImageRef) -> BoxFuture<'_, Result<ImageRemoval, VmError>> {
        Box::pin(async move {
            let removed = self.0.remove_image(&image).await;
            removed.map_err(|err| VmError::Internal(Box::new(err)))
        })
    }

    fn forget(&self, function: &FunctionName) {
        self.0.forget_function(function);
    }

    fn retire(&self, version: &VersionId) {
        self.0.retire(version);
    }

    fn logs(&self, function: &FunctionName, query: LogQuery) -> BoxStream<'static, LogRecord> {
        self.0.logs.read(function.clone(), query)
    }

    fn status(&self) -> VmStatus {
        let vm = &self.0;
        let pools = vm.pools();
        let (calls_active, calls_waiting) = pools
            .iter()
            .map(|pool| pool.load())
            .fold((0, 0), |(active, waiting), (a, w)| (active + a, waiting + w));
        let mut instances: Vec<_> = pools.iter().flat_map(|pool| pool.statuses()).collect();
        instances.sort_by_key(|instance| instance.started_at);
        let state = if vm.is_draining() {
            VmState::Draining
        } else if vm.is_engine_down.load(Ordering::Relaxed) {
            VmState::EngineDown
        } else {
            VmState::Ready
        };
        VmStatus {
            id: vm.id.clone(),
            state,
            boot: vm.boot,
            version: Some(epsilon_bootstrap::metrics::VERSION.to_owned()),
            certificate_ends_at: vm.certificate_ends_at.get().copied(),
            cpu_millicores: vm.cpu,
            memory_bytes: vm.budget.total(),
            memory_used_bytes: vm.budget.used(),
            calls_active,
            calls_waiting,
            instances,
            cells: vm.cells.count(),
            keeps: vm.keeps.lock().clone(),
            images: vm.images.recent(),
        }
    }

    fn drain(&self, draining: bool) {
        self.0.set_draining(DrainReason::Requested, draining);
    }
}
