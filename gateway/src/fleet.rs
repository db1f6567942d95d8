//! The VMs that this gateway can send calls to. Today the one in this process; how many there are and
//! where they stand is known to nobody outside this file and `call/place.rs`.

use epsilon_api::{
    function::Version,
    ids::{VersionId, VmId},
    vm::{Vm, VmStatus},
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// One VM and what the gateway knows of it.
#[derive(Debug)]
pub(crate) struct Member {
    /// Its id.
    pub(crate) id: VmId,
    /// The VM itself.
    pub(crate) vm: Arc<dyn Vm>,
    /// Asked to take no more calls.
    draining: AtomicBool,
}

impl Member {
    /// Whether calls may be sent to it.
    pub(crate) fn takes_calls(&self) -> bool {
        !self.draining.load(Ordering::Relaxed)
    }

    /// Starts or ends a drain.
    pub(crate) fn drain(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
        self.vm.drain(draining);
    }
}

/// All VMs.
#[derive(Debug)]
pub(crate) struct Fleet {
    members: Vec<Member>,
}

impl Fleet {
    /// A fleet of these VMs.
    pub(crate) fn new(vms: impl IntoIterator<Item = Arc<dyn Vm>>) -> Self {
        let members = vms
            .into_iter()
            .map(|vm| Member { id: vm.status().id, vm, draining: AtomicBool::new(false) })
            .collect();
        Self { members }
    }

    /// The VMs, in a fixed order.
    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    /// The VM with this id.
    pub(crate) fn member(&self, id: &VmId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == *id)
    }

    /// What each VM says of itself.
    pub(crate) fn status(&self) -> Vec<VmStatus> {
        self.members.iter().map(|member| member.vm.status()).collect()
    }

    /// The version serves no more: its instances go away everywhere.
    pub(crate) fn retire(&self, version: &Version) {
        let id: VersionId = version.id();
        tracing::info!(function = %id.function, version = %id.number, "Version retired.");
        for member in &self.members {
            member.vm.retire(&id);
        }
    }
}
