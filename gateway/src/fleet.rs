//! The VMs that this gateway can send calls to. VMs join and leave; a call reads one [`Snapshot`]
//! without a lock and keeps it for all of its attempts. `invoke/place.rs` chooses the VM of a call
//! from the state kept here.
//!
//! | file | what it is |
//! |---|---|
//! | `member` | one VM and its state as the gateway knows it |
//! | `health` | whether it responds: a state machine |
//! | `load` | the calls in flight on it |
//! | `breaker` | circuit breakers for functions that fail on it |
//! | `membership` | the list of joined VMs in the store → members |
//! | `watch` | receives the reports of one VM |
//! | `view` | a VM's last report, indexed for placement: warm? image? memory? |
//! | `remote` | a VM reached through its agent's listener: `Vm` over HTTP |
//! | `link` | the connections to one member: pool, TLS, gateway token |
//! | `totals` | calls and weights of all VMs together |

pub(crate) mod autoscaled;
pub(crate) mod breaker;
pub(crate) mod health;
pub(crate) mod link;
pub(crate) mod load;
pub(crate) mod member;
pub(crate) mod membership;
pub(crate) mod remote;
pub(crate) mod totals;
pub(crate) mod view;
pub(crate) mod watch;

use arc_swap::{ArcSwap, Guard};
use epsilon_api::{
    function::Version,
    ids::{FunctionName, VersionId, VmId},
    vm::{Vm, VmStatus},
};
use epsilon_placement::ring::{Ring, Walk};
use epsilon_placement::{hash, ring};
use health::Standing;
pub(crate) use member::{HealthPolicy, Member};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;
use totals::FleetTotals;

/// The members at one moment, and the rings built from them.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// Sorted by id, so that every gateway has the same order.
    members: Vec<Arc<Member>>,
    /// Of all members, including those that drain or are out.
    ring: Ring,
    /// The ring without the members that were new when this snapshot was made. `None` if there were
    /// none, or no others.
    settled: Option<Ring>,
    slow_start: Duration,
    /// Totals over the VMs that take calls.
    pub(crate) fleet_totals: FleetTotals,
}

impl Snapshot {
    /// A snapshot of these members, sorted by id. A VM counts as new for `slow_start`.
    fn new(mut members: Vec<Arc<Member>>, slow_start: Duration) -> Self {
        members.sort_by(|a, b| a.id.cmp(&b.id));
        let vms = || members.iter().map(|member| (member.id.as_str(), member.weight));
        let now = Instant::now();
        let is_new = |vm: usize| members[vm].grown(slow_start, now) < 1.0;
        let count = (0..members.len()).filter(|vm| is_new(*vm)).count();
        let settled = (1..members.len()).contains(&count).then(|| Ring::without(vms(), is_new));
        let ring = Ring::new(vms());
        Self { ring, settled, members, slow_start, fleet_totals: FleetTotals::new() }
    }

    /// The VMs in the order in which calls of the function with this hash try them. While the
    /// function's home is new, its calls stay at the former home until the function's turn has come
    /// and the new home `holds` its image; otherwise it would start on any VM that has the image.
    pub(crate) fn walk(
        &self,
        function: u64,
        now: Instant,
        holds: impl FnOnce(&Member) -> bool,
    ) -> FunctionWalk<'_> {
        let homes = self
            .settled
            .as_ref()
            .and_then(|settled| Some((self.ring.home(function)?, settled.home(function)?)));
        let Some((home, former)) = homes.filter(|(home, former)| home != former) else {
            return FunctionWalk { walk: self.ring.walk(function), lacks_image: None };
        };
        let grown = self.members[home].grown(self.slow_start, now);
        let has_turn = ring::has_turn(function, grown);
        let stays = !has_turn || !holds(&self.members[home]);
        let walk = if grown < 1.0 || stays {
            self.ring.walk_since(function, former, stays)
        } else {
            self.ring.walk(function)
        };
        FunctionWalk { walk, lacks_image: (has_turn && stays).then_some(home) }
    }

    /// The ring that applies once no VM is new.
    #[cfg(test)]
    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The VMs, sorted by id.
    pub(crate) fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// The VMs that take calls and respond, in the order in which calls of this function try them.
    pub(crate) fn order(&self, function: &FunctionName) -> Vec<Arc<Member>> {
        let FunctionWalk { walk, .. } =
            self.walk(hash::of_name(function.as_str()), Instant::now(), |_| true);
        let in_order = walk.map(|vm| &self.members[vm]);
        let answers = |member: &&Arc<Member>| !matches!(member.standing(), Standing::Out(_));
        in_order.filter(|member| member.takes_calls()).filter(answers).cloned().collect()
    }

    /// The VM with this id.
    pub(crate) fn member(&self, id: &VmId) -> Option<&Arc<Member>> {
        let found = self.members.binary_search_by(|member| member.id.cmp(id)).ok()?;
        self.members.get(found)
    }
}

/// A function's order of VMs.
#[derive(Debug)]
pub(crate) struct FunctionWalk<'a> {
    pub(crate) walk: Walk<'a>,
    /// The new home, if it lacks nothing but the image.
    pub(crate) lacks_image: Option<usize>,
}

/// All VMs, as snapshots that are replaced when one joins or leaves.
#[derive(Debug)]
pub(crate) struct Fleet {
    now: ArcSwap<Snapshot>,
    /// Held while a snapshot is replaced; calls never wait for it.
    write_lock: Mutex<()>,
    slow_start: Duration,
    /// VMs that joined but cannot be used, because their TLS settings and the gateway's do not
    /// match.
    unusable: AtomicUsize,
    /// A VM that has left since had reported.
    had_reports: AtomicBool,
}

impl Fleet {
    /// A fleet of these VMs in this process.
    pub(crate) fn new(
        vms: impl IntoIterator<Item = Arc<dyn Vm>>,
        health_policy: &HealthPolicy,
    ) -> Self {
        let members =
            vms.into_iter().map(|vm| Arc::new(Member::local(vm, health_policy))).collect();
        let slow_start = health_policy.slow_start;
        let now = ArcSwap::from_pointee(Snapshot::new(members, slow_start));
        Self {
            now,
            write_lock: Mutex::default(),
            slow_start,
            unusable: AtomicUsize::new(0),
            had_reports: AtomicBool::new(false),
        }
    }

    /// The current snapshot. Hold it for one call at most: it may contain VMs that have left.
    pub(crate) fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.now.load()
    }

    /// The current members, for work that awaits.
    pub(crate) fn members(&self) -> Vec<Arc<Member>> {
        self.now.load().members.clone()
    }

    /// The VM with this id.
    pub(crate) fn member(&self, id: &VmId) -> Option<Arc<Member>> {
        self.now.load().member(id).cloned()
    }

    /// Adds a VM, replacing the one with the same id.
    pub(crate) fn admit(&self, member: Arc<Member>) {
        self.change(|members| {
            members.retain(|known| known.id != member.id);
            members.push(member);
        });
    }

    /// Removes a VM. Calls that run on it continue.
    pub(crate) fn forget(&self, id: &VmId) -> Option<Arc<Member>> {
        self.change(|members| {
            let found = members.iter().position(|member| member.id == *id)?;
            Some(members.swap_remove(found))
        })
    }

    fn change<T>(&self, edit: impl FnOnce(&mut Vec<Arc<Member>>) -> T) -> T {
        let _guard = self.write_lock.lock();
        let mut members = self.members();
        self.had_reports.store(self.has_any_reported(), Relaxed);
        let result = edit(&mut members);
        self.now.store(Arc::new(Snapshot::new(members, self.slow_start)));
        result
    }

    /// Whether any VM, including those that left, has reported to this process.
    pub(crate) fn has_any_reported(&self) -> bool {
        let has_reported = |member: &Arc<Member>| member.view().has_reported;
        self.had_reports.load(Relaxed) || self.snapshot().members().iter().any(has_reported)
    }

    /// Number of VMs that joined but cannot be used.
    pub(crate) fn unusable(&self) -> usize {
        self.unusable.load(Relaxed)
    }

    /// Sets the number of VMs that joined but cannot be used.
    pub(crate) fn set_unusable(&self, vms: usize) {
        self.unusable.store(vms, Relaxed);
    }

    /// The last status of each VM.
    pub(crate) fn status(&self) -> Vec<VmStatus> {
        self.members().iter().map(|member| member.vm.status()).collect()
    }

    /// The version no longer serves: removes its instances on all VMs.
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
    fn members_are_sorted_by_id() {
        let health_policy = HealthPolicy::default();
        let fleet = Fleet::new([FakeVm::arc("c"), FakeVm::arc("a")], &health_policy);
        let before = fleet.snapshot();
        fleet.admit(Arc::new(Member::local(FakeVm::arc("b"), &health_policy)));
        fleet.admit(Arc::new(Member::local(FakeVm::arc("a"), &health_policy)));
        assert_eq!(ids(&fleet), ["a", "b", "c"]);
        let id = VmId::parse("b").unwrap();
        assert_eq!(fleet.member(&id).unwrap().id, id);
        assert!(fleet.forget(&id).is_some() && fleet.forget(&id).is_none());
        assert!(fleet.member(&id).is_none());
        assert_eq!(ids(&fleet), ["a", "c"]);
        assert_eq!(before.members().len(), 2, "a call keeps the snapshot it started with");
    }
}
