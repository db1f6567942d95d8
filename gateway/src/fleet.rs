//! The VMs that this gateway can send calls to. They come and go; a call reads one [`Snapshot`] of them without
//! a lock and keeps it for its whole walk. Which VM a call gets is `call/place.rs`'s choice, made from what stands here.
//!
//! | file | what it is |
//! |---|---|
//! | `member` | one VM and what the gateway knows of it |
//! | `view` | a VM's last report, made quick to ask: warm? image? room? |
//! | `remote` | a VM behind its agent's listener; `Vm` over the wire |
//! | `link` | the way to one member: connections, TLS, pass |
//! | `trouble` | what can go wrong between gateway and VM |

pub(crate) mod link;
pub(crate) mod member;
pub(crate) mod remote;
pub(crate) mod trouble;
pub(crate) mod view;

use arc_swap::{ArcSwap, Guard};
use epsilon_api::{
    function::Version,
    ids::{VersionId, VmId},
    vm::{Vm, VmStatus},
};
pub(crate) use member::Member;
use parking_lot::Mutex;
use std::sync::Arc;

/// The members at one moment, and whatever is made from their set alone (the ring).
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// By id, so that every gateway has them in the same order.
    members: Vec<Arc<Member>>,
}

impl Snapshot {
    /// A snapshot of these members, by id.
    fn new(mut members: Vec<Arc<Member>>) -> Self {
        members.sort_by(|a, b| a.id.cmp(&b.id));
        Self { members }
    }

    /// The VMs, in a fixed order.
    pub(crate) fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// The VM with this id.
    pub(crate) fn member(&self, id: &VmId) -> Option<&Arc<Member>> {
        let found = self.members.binary_search_by(|member| member.id.cmp(id)).ok()?;
        self.members.get(found)
    }
}

/// All VMs.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    now: ArcSwap<Snapshot>,
    /// Held while a new snapshot is made from the one before; calls never wait for it.
    door: Mutex<()>,
}

impl Fleet {
    /// A fleet of these VMs.
    pub(crate) fn new(vms: impl IntoIterator<Item = Arc<dyn Vm>>) -> Self {
        let members = vms.into_iter().map(|vm| Arc::new(Member::new(vm))).collect();
        Self { now: ArcSwap::from_pointee(Snapshot::new(members)), door: Mutex::default() }
    }

    /// The VMs as they are now. Keep it for one call, not longer: it holds VMs that may be gone.
    pub(crate) fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.now.load()
    }

    /// The same for work that awaits.
    pub(crate) fn members(&self) -> Vec<Arc<Member>> {
        self.now.load().members.clone()
    }

    /// The VM with this id.
    pub(crate) fn member(&self, id: &VmId) -> Option<Arc<Member>> {
        self.now.load().member(id).cloned()
    }

    /// Takes a VM in, in place of the one of the same id if there is one.
    pub(crate) fn admit(&self, member: Arc<Member>) {
        self.change(|members| {
            members.retain(|known| known.id != member.id);
            members.push(member);
        });
    }

    /// Knows this VM no more. Calls that run on it go on.
    pub(crate) fn forget(&self, id: &VmId) -> Option<Arc<Member>> {
        self.change(|members| {
            let found = members.iter().position(|member| member.id == *id)?;
            Some(members.swap_remove(found))
        })
    }

    fn change<T>(&self, edit: impl FnOnce(&mut Vec<Arc<Member>>) -> T) -> T {
        let _door = self.door.lock();
        let mut members = self.members();
        let result = edit(&mut members);
        self.now.store(Arc::new(Snapshot::new(members)));
        result
    }

    /// What each VM says of itself.
    pub(crate) fn status(&self) -> Vec<VmStatus> {
        self.members().iter().map(|member| member.vm.status()).collect()
    }

    /// The version serves no more: its instances go away everywhere.
    pub(crate) fn retire(&self, version: &Version) {
        let id: VersionId = version.id();
        tracing::info!(function = %id.function, version = %id.number, "Version retired.");
        for member in self.snapshot().members() {
            member.vm.retire(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeVm;

    fn ids(fleet: &Fleet) -> Vec<String> {
        fleet.snapshot().members().iter().map(|member| member.id.to_string()).collect()
    }

    #[test]
    fn members_come_and_go_in_the_order_of_their_ids() {
        let fleet = Fleet::new([FakeVm::arc("c"), FakeVm::arc("a")]);
        let before = fleet.snapshot();
        fleet.admit(Arc::new(Member::new(FakeVm::arc("b"))));
        fleet.admit(Arc::new(Member::new(FakeVm::arc("a"))));
        assert_eq!(ids(&fleet), ["a", "b", "c"]);
        let id = VmId::parse("b").unwrap();
        assert_eq!(fleet.member(&id).unwrap().id, id);
        assert!(fleet.forget(&id).is_some() && fleet.forget(&id).is_none());
        assert!(fleet.member(&id).is_none());
        assert_eq!(ids(&fleet), ["a", "c"]);
        assert_eq!(before.members().len(), 2, "a call keeps the snapshot it began with");
    }
}
