//! One VM and what the gateway knows of it. Everything that a call reads here is an atomic or a swap.

use super::view::View;
use arc_swap::{ArcSwap, Guard};
use epsilon_api::{
    ids::VmId,
    vm::{Vm, VmState, VmStatus},
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::time::Instant;

/// See the module.
#[derive(Debug)]
pub(crate) struct Member {
    /// Its id.
    pub(crate) id: VmId,
    /// The VM itself: the one of this process, or a client of an agent's listener.
    pub(crate) vm: Arc<dyn Vm>,
    /// The operator wants it empty. It may drain without that, by its own decision; see [`Self::takes_calls`].
    drain_asked: AtomicBool,
    /// Its last report.
    view: ArcSwap<View>,
}

impl Member {
    /// A VM that has just come.
    pub(crate) fn new(vm: Arc<dyn Vm>) -> Self {
        let status = vm.status();
        Self {
            id: status.id.clone(),
            vm,
            drain_asked: AtomicBool::new(false),
            view: ArcSwap::from_pointee(View::of(status, Instant::now())),
        }
    }

    /// What it said last.
    pub(crate) fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// It says how it is.
    pub(crate) fn reported(&self, status: VmStatus, now: Instant) {
        self.view.store(Arc::new(View::of(status, now)));
    }

    /// Whether it may be sent calls, as far as drains go: neither the operator nor the VM itself wants it empty.
    pub(crate) fn takes_calls(&self) -> bool {
        !self.is_asked_to_drain() && self.view().state != VmState::Draining
    }

    /// Whether the operator wants it empty.
    pub(crate) fn is_asked_to_drain(&self) -> bool {
        self.drain_asked.load(Ordering::Relaxed)
    }

    /// Starts or ends a drain.
    pub(crate) fn drain(&self, draining: bool) {
        self.drain_asked.store(draining, Ordering::Relaxed);
        self.vm.drain(draining);
    }
}
