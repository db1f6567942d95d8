//! The agent's VM with one change: a new version's instance is prewarmed only when its function is
//! in use. The builder's inspection has already loaded the code; thirty functions in one file must
//! not start thirty processes at each save.

use epsilon_api::{
    error::VmError,
    function::Version,
    ids::{FunctionName, VersionId},
    log::{LogQuery, LogRecord},
    vm::{Answer, Call, Vm, VmStatus},
};
use futures_util::{future::BoxFuture, stream::BoxStream};
use parking_lot::RwLock;
use std::{collections::HashSet, sync::Arc};

/// A VM that prewarms only functions in use.
#[derive(Debug)]
pub(super) struct LazyPrewarmVm {
    vm: Arc<dyn Vm>,
    in_use: RwLock<HashSet<FunctionName>>,
}

impl LazyPrewarmVm {
    pub(super) fn new(vm: Arc<dyn Vm>) -> Self {
        Self { vm, in_use: RwLock::default() }
    }
}

impl Vm for LazyPrewarmVm {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, VmError>> {
        let function = &call.version.function;
        let is_known = self.in_use.read().contains(function);
        if !is_known {
            self.in_use.write().insert(function.clone());
        }
        self.vm.call(call)
    }

    fn ensure_ready(&self, version: Arc<Version>) -> BoxFuture<'_, Result<(), VmError>> {
        let wanted =
            version.spec.min_instances > 0 || self.in_use.read().contains(&version.function);
        if wanted { self.vm.ensure_ready(version) } else { Box::pin(async { Ok(()) }) }
    }

    fn fetch(&self, version: Arc<Version>) -> BoxFuture<'_, Result<(), VmError>> {
        self.vm.fetch(version)
    }

    fn forget(&self, function: &FunctionName) {
        self.vm.forget(function);
    }

    fn retire(&self, version: &VersionId) {
        self.vm.retire(version);
    }

    fn logs(&self, function: &FunctionName, query: LogQuery) -> BoxStream<'static, LogRecord> {
        self.vm.logs(function, query)
    }

    fn status(&self) -> VmStatus {
        self.vm.status()
    }

    fn drain(&self, draining: bool) {
        self.vm.drain(draining);
    }
}
