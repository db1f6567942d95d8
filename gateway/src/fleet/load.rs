//! The load of one VM, as this gateway knows it between two reports: its own calls exactly, those
//! of other gateways from the last reports, and recent changes for a single version. Atomics only;
//! a call reads a few and changes two.
//!
//! All of it is a hint; the agent decides. So versions are hashed into [`SLOTS`] instead of having
//! entries: memory is fixed, and two versions in one slot cost a wrong guess now and then.

use super::view::{VersionKey, Warm};
use epsilon_api::{
    units::{Bytes, MilliCores},
    vm::{InstanceState, VmStatus},
};
use epsilon_placement::bounded_load::{Balance, Totals};
use std::{
    sync::{
        Arc,
        atomic::{
            AtomicI32, AtomicU32, AtomicU64,
            Ordering::{Relaxed, Release},
        },
    },
    time::Duration,
};

/// Hash slots for versions on one VM; a power of two. A VM has some hundred versions at most.
const SLOTS: usize = 512;
const BITS: usize = u64::BITS as usize;
/// Fixed-point scale of [`Load::others`]: 1/16 call.
const SCALE: i32 = 16;

/// Load of one VM.
#[derive(Debug)]
pub(crate) struct Load {
    /// Calls of this gateway in flight there.
    own: AtomicU32,
    /// Calls of this gateway sent there so far.
    sent: AtomicU64,
    /// Calls in the reports beyond `own`, in units of 1/[`SCALE`] call. Smoothed, because a report
    /// is older than it seems and own calls begin and end in the meantime. Negative about as often
    /// as not if there is no other gateway.
    others: AtomicI32,
    /// [`Balance::share`] and [`Balance::floor`] as of the last [`Self::add_to_totals`].
    share: AtomicU32,
    floor: AtomicU32,
    /// Memory for new instances: free, or held by idle instances that the agent can stop.
    startable_memory: AtomicU64,
    per_version: Box<PerVersion>,
}

#[derive(Debug)]
struct PerVersion {
    /// [`OwnCalls`] calls per version: those in flight, and those that were answered and ended
    /// since the last report.
    own: [AtomicU32; SLOTS],
    /// The same at the time of the last report: those in flight, and those that were answered and
    /// ended between the last report and the one before.
    reported: [AtomicU32; SLOTS],
    /// Versions that the VM refused since the last report, one bit each.
    refused: [AtomicU64; SLOTS / BITS],
}

/// Two counts in one number, so that the end of a call changes both in one atomic operation.
#[derive(Clone, Copy, Debug)]
struct OwnCalls(u32);

impl OwnCalls {
    const RUNS: u32 = 1;
    const ENDED: u32 = 1 << 16;

    fn running(self) -> u32 {
        self.0 % Self::ENDED
    }

    /// Wraps to zero at 65,536: it then explains fewer of a report's calls than it could.
    fn ended(self) -> u32 {
        self.0 / Self::ENDED
    }
}

impl Load {
    /// The load of a VM without calls.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            own: AtomicU32::new(0),
            sent: AtomicU64::new(0),
            others: AtomicI32::new(0),
            share: AtomicU32::new(0),
            floor: AtomicU32::new(0),
            startable_memory: AtomicU64::new(u64::MAX),
            per_version: Box::new(PerVersion {
                own: [const { AtomicU32::new(0) }; SLOTS],
                reported: [const { AtomicU32::new(0) }; SLOTS],
                refused: [const { AtomicU64::new(0) }; SLOTS / BITS],
            }),
        })
    }

    /// Counts a call of this version, until the returned guard is dropped at the call's last byte.
    pub(crate) fn begin_call(self: &Arc<Self>, version: VersionKey) -> InFlightGuard {
        self.own.fetch_add(1, Relaxed);
        self.sent.fetch_add(1, Relaxed);
        self.per_version.own[slot(version)].fetch_add(OwnCalls::RUNS, Relaxed);
        InFlightGuard { load: Arc::clone(self), version, is_answered: false }
    }

    /// Takes over a report of the VM.
    pub(crate) fn reported(&self, status: &VmStatus) {
        let total = status.calls_active.saturating_add(status.calls_waiting);
        let seen = i64::from(total) - i64::from(self.own.load(Relaxed));
        let seen = seen.clamp(-1_000_000, 1_000_000) as i32 * SCALE;
        // Half of the difference per report: a second gateway's surge is known in two seconds, and
        // jitter levels out.
        let smooth = |others: i32| others + (seen - others) / 2;
        self.others.store(smooth(self.others.load(Relaxed)), Relaxed);
        self.startable_memory.store(startable_memory(status), Relaxed);
        for (reported, own) in self.per_version.reported.iter().zip(&self.per_version.own) {
            let mut seen = own.load(Relaxed);
            if OwnCalls(seen).ended() > 0 {
                seen = own.fetch_and(OwnCalls::ENDED - 1, Relaxed);
            }
            reported.store(seen, Relaxed);
        }
        for refused in &self.per_version.refused {
            refused.store(0, Relaxed);
        }
    }

    /// A report is overdue: the estimate of the other gateways' calls decays with each one missed.
    pub(crate) fn silent(&self) {
        self.others.store(self.others.load(Relaxed) / 2, Relaxed);
    }

    /// The VM refused a call of this version for lack of memory or slots. Valid until it reports,
    /// or until a call of this version from this gateway ends there.
    pub(crate) fn refused(&self, version: VersionKey) {
        let slot = slot(version);
        self.per_version.refused[slot / BITS].fetch_or(1 << (slot % BITS), Release);
    }

    /// Whether the VM refused this version a moment ago.
    pub(crate) fn has_refused(&self, version: VersionKey) -> bool {
        let slot = slot(version);
        self.per_version.refused[slot / BITS].load(Relaxed) & (1 << (slot % BITS)) != 0
    }

    /// Free concurrency slots in warm instances of a version, with `each` slots per instance;
    /// `warm` is what the last report says. This gateway's calls are known exactly; those of other
    /// gateways are what the report shows beyond them.
    ///
    /// A report is older than it seems: it was made while a call ran that has since ended, or while
    /// an instance started that has since answered. So calls in the report beyond our own count as
    /// other gateways' only if no call of ours ended recently, or if other gateways are known to
    /// have calls there. And an answer proves that an instance exists.
    pub(crate) fn free(&self, version: VersionKey, warm: Warm, each: u32) -> u32 {
        let slot = slot(version);
        let now = OwnCalls(self.per_version.own[slot].load(Relaxed));
        let then = OwnCalls(self.per_version.reported[slot].load(Relaxed));
        let beyond = warm.taken.saturating_sub(then.running());
        let others = beyond.saturating_sub(then.ended()).max(beyond.min(self.others()));
        let has_served = now.ended() > 0 || (warm.starting > 0 && then.ended() > 0);
        let slots = if warm.slots == 0 && has_served { each } else { warm.slots };
        slots.saturating_sub(others).saturating_sub(now.running())
    }

    /// Whether an instance of this size can be started, by the last report.
    pub(crate) fn has_memory(&self, memory: Bytes) -> bool {
        memory.get() <= self.startable_memory.load(Relaxed)
    }

    /// Calls of this gateway sent there so far.
    pub(crate) fn sent_calls(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Calls of this gateway in flight there.
    pub(crate) fn own_calls(&self) -> u32 {
        self.own.load(Relaxed)
    }

    /// Calls of all gateways in flight there.
    pub(crate) fn calls(&self) -> u32 {
        self.own.load(Relaxed).saturating_add(self.others())
    }

    /// Calls of other gateways in flight there, by the reports.
    fn others(&self) -> u32 {
        u32::try_from(self.others.load(Relaxed) / SCALE).unwrap_or(0)
    }

    /// Recomputes the VM's share and adds the VM to the totals of those that take calls.
    pub(crate) fn add_to_totals(
        &self,
        balance: &Balance,
        weight: u32,
        cpu: MilliCores,
        age: Duration,
        totals: &mut Totals,
    ) {
        let share = balance.share(weight, age);
        self.share.store(share, Relaxed);
        self.floor.store(balance.floor(cpu.0, age), Relaxed);
        totals.calls += u64::from(self.calls());
        totals.shares += u64::from(share);
        totals.vms += 1;
    }

    /// Whether one more call is within the VM's bound.
    pub(crate) fn is_within(&self, balance: &Balance, totals: Totals) -> bool {
        let (share, floor) = (self.share.load(Relaxed), self.floor.load(Relaxed));
        let calls = self.calls();
        calls < floor || calls < balance.bound(share, floor, totals)
    }

    /// Calls per share, to choose among VMs beyond their bounds.
    pub(crate) fn load_ratio(&self) -> u64 {
        u64::from(self.calls()) * 1_000_000 / u64::from(self.share.load(Relaxed).max(1))
    }
}

/// Counts a call as in flight on a VM until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlightGuard {
    load: Arc<Load>,
    version: VersionKey,
    is_answered: bool,
}

impl InFlightGuard {
    /// The VM answered the call: when the call ends, its slot in an instance is free again.
    pub(crate) fn answered(self) -> Self {
        let mut in_flight = self;
        in_flight.is_answered = true;
        in_flight
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let slot = slot(self.version);
        self.load.own.fetch_sub(1, Relaxed);
        let ended = if self.is_answered { OwnCalls::ENDED } else { 0 };
        self.load.per_version.own[slot].fetch_add(ended.wrapping_sub(OwnCalls::RUNS), Relaxed);
        let refused = &self.load.per_version.refused[slot / BITS];
        if refused.load(Relaxed) != 0 {
            refused.fetch_and(!(1 << (slot % BITS)), Relaxed);
        }
    }
}

fn slot(version: VersionKey) -> usize {
    version.spread() as usize % SLOTS
}

/// Free memory, plus an estimate of what idle instances hold: reports do not contain the size of an
/// instance, so each counts as the mean.
fn startable_memory(status: &VmStatus) -> u64 {
    if status.memory_bytes.get() == 0 {
        return u64::MAX;
    }
    let used = status.memory_used_bytes.get();
    let free = status.memory_bytes.get().saturating_sub(used);
    let idle =
        status.instances.iter().filter(|instance| instance.state == InstanceState::Idle).count()
            as u64;
    let each = used.checked_div(status.instances.len() as u64).unwrap_or(0);
    free.saturating_add(each.saturating_mul(idle))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, FakeVm};
    use epsilon_api::{
        ids::InstanceId,
        vm::{InstanceStatus, Vm},
    };
    use jiff::Timestamp;

    fn key(function: &str) -> VersionKey {
        VersionKey::of_version(&testing::version(function, 1))
    }

    fn report(active: u32, waiting: u32) -> VmStatus {
        VmStatus { calls_active: active, calls_waiting: waiting, ..FakeVm::new("a").status() }
    }

    fn instance(state: &str) -> InstanceStatus {
        let version = testing::version("pay", 1);
        InstanceStatus {
            id: InstanceId::random(),
            function: version.function,
            version: version.number,
            state: serde_json::from_value(state.into()).unwrap(),
            calls_active: 0,
            concurrency: 1,
            started_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn own_calls_count_until_they_end() {
        let load = Load::new();
        let (one, two) = (load.begin_call(key("pay")), load.begin_call(key("ship")));
        assert_eq!(load.calls(), 2);
        drop((one, two));
        assert_eq!(load.calls(), 0);
    }

    #[test]
    fn a_report_of_our_own_calls_adds_nothing() {
        let load = Load::new();
        let _own = [load.begin_call(key("pay")), load.begin_call(key("pay"))];
        load.reported(&report(2, 0));
        assert_eq!(load.calls(), 2);
        // Two calls began and ended while the report was in transit, then two fewer: jitter.
        load.reported(&report(3, 0));
        load.reported(&report(1, 0));
        assert_eq!(load.calls(), 2);
    }

    #[test]
    fn calls_of_other_gateways_follow_reports() {
        let load = Load::new();
        let _own = load.begin_call(key("pay"));
        for _ in 0..6 {
            load.reported(&report(30, 11));
        }
        assert!((39..=41).contains(&load.calls()), "{}", load.calls());
        for _ in 0..6 {
            load.silent();
        }
        assert_eq!(load.calls(), 1);
    }

    /// A report of instances with four slots each: how many serve, calls in them, how many start.
    fn warm(serving: u32, taken: u32, starting: u32) -> Warm {
        Warm { instances: serving + starting, starting, slots: 4 * serving, taken }
    }

    #[test]
    fn free_places_follow_our_calls_between_reports() {
        let load = Load::new();
        let free = |warm| load.free(key("pay"), warm, 4);
        let old = load.begin_call(key("pay"));
        load.reported(&report(1, 0));
        assert_eq!(free(warm(1, 1, 0)), 3);
        let new = [(); 3].map(|()| load.begin_call(key("pay")));
        assert_eq!(free(warm(1, 1, 0)), 0);
        let more = load.begin_call(key("pay"));
        assert_eq!(free(warm(1, 1, 0)), 0, "never negative");
        drop((new, more));
        assert_eq!(free(warm(1, 1, 0)), 3);
        drop(old.answered());
        assert_eq!(free(warm(1, 1, 0)), 4, "the call in the report has ended");
    }

    #[test]
    fn calls_begun_during_report_transit_take_a_slot() {
        let load = Load::new();
        let _own = load.begin_call(key("pay"));
        load.reported(&report(0, 0));
        assert_eq!(load.free(key("pay"), warm(1, 0, 0), 4), 3);
    }

    #[test]
    fn calls_ended_during_report_transit_free_their_slot() {
        let load = Load::new();
        drop(load.begin_call(key("pay")).answered());
        load.reported(&report(1, 0));
        assert_eq!(load.free(key("pay"), warm(1, 1, 0), 4), 4);
        // The next report shows it again: another gateway's call.
        load.reported(&report(1, 0));
        assert_eq!(load.free(key("pay"), warm(1, 1, 0), 4), 3);
        assert_eq!(
            load.free(key("ship"), warm(1, 1, 0), 4),
            3,
            "calls of another function do not count"
        );
    }

    #[test]
    fn calls_of_others_are_not_mistaken_for_ended_ones() {
        let load = Load::new();
        (0..8).for_each(|_| load.reported(&report(3, 0)));
        for _ in 0..9 {
            drop(load.begin_call(key("pay")).answered());
        }
        load.reported(&report(3, 0));
        assert_eq!(
            load.free(key("pay"), warm(1, 3, 0), 4),
            2,
            "at least one of the three may be ours"
        );
        load.reported(&report(3, 0));
        assert_eq!(load.free(key("pay"), warm(1, 3, 0), 4), 1, "none of our calls ended since");
    }

    #[test]
    fn where_an_answer_came_from_an_instance_is() {
        let load = Load::new();
        let free = |warm| load.free(key("pay"), warm, 4);
        load.reported(&report(0, 0));
        drop(load.begin_call(key("pay")));
        assert_eq!((free(warm(0, 0, 0)), free(warm(0, 0, 1))), (0, 0), "it was refused");
        drop(load.begin_call(key("pay")).answered());
        assert_eq!((free(warm(0, 0, 0)), free(warm(0, 0, 1))), (4, 4), "it has started since");
        load.reported(&report(0, 0));
        assert_eq!(free(warm(0, 0, 1)), 4, "it started while the report was in transit");
        assert_eq!(free(warm(0, 0, 0)), 0, "it is gone");
        load.reported(&report(0, 0));
        assert_eq!(free(warm(0, 0, 1)), 0, "that is another instance");
    }

    #[test]
    fn ends_of_calls_do_not_count_as_running_ones() {
        let load = Load::new();
        let _running = [(); 2].map(|()| load.begin_call(key("pay")));
        for _ in 0..70_000 {
            drop(load.begin_call(key("pay")).answered());
        }
        assert_eq!(load.free(key("pay"), warm(1, 0, 0), 4), 2);
        load.reported(&report(2, 0));
        assert_eq!(load.free(key("pay"), warm(1, 2, 0), 4), 2);
    }

    #[test]
    fn a_refusal_lasts_until_report_or_call_end() {
        let load = Load::new();
        let running = load.begin_call(key("pay"));
        load.refused(key("pay"));
        assert!(load.has_refused(key("pay")) && !load.has_refused(key("ship")));
        drop(running);
        assert!(!load.has_refused(key("pay")));
        load.refused(key("pay"));
        load.reported(&report(0, 0));
        assert!(!load.has_refused(key("pay")));
    }

    #[test]
    fn idle_instances_make_room() {
        let load = Load::new();
        assert!(load.has_memory(Bytes::mib(1 << 20)), "there is no report yet");
        let status = |states: &[&str]| VmStatus {
            memory_bytes: Bytes::mib(1024),
            memory_used_bytes: Bytes::mib(1024),
            instances: states.iter().copied().map(instance).collect(),
            ..report(0, 0)
        };
        load.reported(&status(&["busy", "busy", "starting", "draining"]));
        assert!(!load.has_memory(Bytes::mib(1)));
        load.reported(&status(&["busy", "idle", "busy", "busy"]));
        assert!(load.has_memory(Bytes::mib(256)) && !load.has_memory(Bytes::mib(257)));
        load.reported(&VmStatus { memory_bytes: Bytes(0), ..status(&[]) });
        assert!(load.has_memory(Bytes::mib(1 << 20)), "the report does not contain it");
    }
}
