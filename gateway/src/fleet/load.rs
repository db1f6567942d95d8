//! What one VM carries, as this gateway knows it between two reports: its own calls to the moment, those of other
//! gateways by the last reports, and what changed for a single version since. Atomics only; a call reads a few and
//! moves two.
//!
//! Hints, all of it: the agent has the last word. So versions share [`SLOTS`] by their keys instead of having entries: it never
//! grows, and two versions in one slot cost a wrong guess now and then.

use super::view::{VersionKey, Warm};
use crate::call::place::bound::{Balance, Totals};
use epsilon_api::{
    units::{Bytes, MilliCores},
    vm::VmStatus,
};
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

/// For versions on one VM; a power of two. A VM holds some hundred at most.
const SLOTS: usize = 512;
const BITS: usize = u64::BITS as usize;
/// Parts of a call in which [`Load::others`] is kept.
const PART: i32 = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Load {
    /// Calls of this gateway that run there.
    own: AtomicU32,
    /// All that were sent there so far.
    sent: AtomicU64,
    /// What reports showed beyond `own`, in parts of a call: smoothed, because a report is as old as its way here and
    /// own calls begin and end meanwhile. Negative as often as not when there is no other gateway.
    others: AtomicI32,
    /// [`Balance::share`] and [`Balance::floor`] as of the last [`Self::weigh`].
    share: AtomicU32,
    floor: AtomicU32,
    /// Memory for new instances: free, or held by idle ones that the agent can let go.
    room: AtomicU64,
    slots: Box<Slots>,
}

#[derive(Debug)]
struct Slots {
    /// [`Own`] calls of the version: those that run now, and that were answered and ended since the last report.
    own: [AtomicU32; SLOTS],
    /// The same when the last report came: those that ran, and that were answered and ended between it and the one before.
    reported: [AtomicU32; SLOTS],
    /// Versions that the VM refused since then, a bit each.
    refused: [AtomicU64; SLOTS / BITS],
}

/// Two counts in one number, so that the end of a call moves both at once.
#[derive(Clone, Copy, Debug)]
struct Own(u32);

impl Own {
    const RUNS: u32 = 1;
    const ENDED: u32 = 1 << 16;

    fn running(self) -> u32 {
        self.0 % Self::ENDED
    }

    /// From 65,536 on from zero again: it then explains fewer of a report's calls than it could.
    fn ended(self) -> u32 {
        self.0 / Self::ENDED
    }
}

impl Load {
    /// Of a VM that carries nothing yet.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            own: AtomicU32::new(0),
            sent: AtomicU64::new(0),
            others: AtomicI32::new(0),
            share: AtomicU32::new(0),
            floor: AtomicU32::new(0),
            room: AtomicU64::new(u64::MAX),
            slots: Box::new(Slots {
                own: [const { AtomicU32::new(0) }; SLOTS],
                reported: [const { AtomicU32::new(0) }; SLOTS],
                refused: [const { AtomicU64::new(0) }; SLOTS / BITS],
            }),
        })
    }

    /// A call of this version goes there; it counts until the returned value is dropped: at its last byte.
    pub(crate) fn carry(self: &Arc<Self>, version: VersionKey) -> Carried {
        self.own.fetch_add(1, Relaxed);
        self.sent.fetch_add(1, Relaxed);
        self.slots.own[slot(version)].fetch_add(Own::RUNS, Relaxed);
        Carried { load: Arc::clone(self), version, is_answered: false }
    }

    /// The VM says how it is.
    pub(crate) fn reported(&self, status: &VmStatus) {
        let told = status.calls_active.saturating_add(status.calls_waiting);
        let seen = i64::from(told) - i64::from(self.own.load(Relaxed));
        let seen = seen.clamp(-1_000_000, 1_000_000) as i32 * PART;
        // One report in two: a second gateway's surge is known in two seconds, and what is only jitter levels out.
        let smooth = |others: i32| others + (seen - others) / 2;
        self.others.store(smooth(self.others.load(Relaxed)), Relaxed);
        self.room.store(room(status), Relaxed);
        for (reported, own) in self.slots.reported.iter().zip(&self.slots.own) {
            let mut seen = own.load(Relaxed);
            if Own(seen).ended() > 0 {
                seen = own.fetch_and(Own::ENDED - 1, Relaxed);
            }
            reported.store(seen, Relaxed);
        }
        for refused in &self.slots.refused {
            refused.store(0, Relaxed);
        }
    }

    /// A report is overdue: what the others do there is worth less with each one.
    pub(crate) fn silent(&self) {
        self.others.store(self.others.load(Relaxed) / 2, Relaxed);
    }

    /// The VM refused a call of this version: no room, until it reports or one of our calls of it ends there.
    pub(crate) fn refused(&self, version: VersionKey) {
        let slot = slot(version);
        self.slots.refused[slot / BITS].fetch_or(1 << (slot % BITS), Release);
    }

    /// Whether it refused this version a moment ago.
    pub(crate) fn has_refused(&self, version: VersionKey) -> bool {
        let slot = slot(version);
        self.slots.refused[slot / BITS].load(Relaxed) & (1 << (slot % BITS)) != 0
    }

    /// Free warm places of a version with so many for each instance, when the last report told this. Own calls are known to the call;
    /// those of other gateways are what the report showed beyond them.
    ///
    /// A report is older than it seems: it was made while a call ran that had ended when it came, or while the instance of that
    /// call started. So what it shows beyond our calls is others' only as far as no call of ours ended lately, or others are
    /// known to have calls there; and where an answer came from, an instance is.
    pub(crate) fn free(&self, version: VersionKey, told: Warm, each: u32) -> u32 {
        let slot = slot(version);
        let now = Own(self.slots.own[slot].load(Relaxed));
        let then = Own(self.slots.reported[slot].load(Relaxed));
        let beyond = told.taken.saturating_sub(then.running());
        let others = beyond.saturating_sub(then.ended()).max(beyond.min(self.others()));
        let has_served = now.ended() > 0 || (told.starting > 0 && then.ended() > 0);
        let places = if told.places == 0 && has_served { each } else { told.places };
        places.saturating_sub(others).saturating_sub(now.running())
    }

    /// Whether an instance of this size can be started, as far as the last report tells.
    pub(crate) fn has_memory(&self, memory: Bytes) -> bool {
        memory.get() <= self.room.load(Relaxed)
    }

    /// Calls of this gateway that were sent there so far.
    pub(crate) fn sent_calls(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Calls of this gateway that run there.
    pub(crate) fn own_calls(&self) -> u32 {
        self.own.load(Relaxed)
    }

    /// Calls that it carries, of all gateways.
    pub(crate) fn calls(&self) -> u32 {
        self.own.load(Relaxed).saturating_add(self.others())
    }

    /// Calls of other gateways that it carries, as far as its reports show.
    fn others(&self) -> u32 {
        u32::try_from(self.others.load(Relaxed) / PART).unwrap_or(0)
    }

    /// Computes its share again, and adds it to the totals of those that take calls.
    pub(crate) fn weigh(
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

    /// Whether one more call is within its bound.
    pub(crate) fn is_within(&self, balance: &Balance, totals: Totals) -> bool {
        let (share, floor) = (self.share.load(Relaxed), self.floor.load(Relaxed));
        let calls = self.calls();
        calls < floor || calls < balance.bound(share, floor, totals)
    }

    /// Calls per share, for a choice among those beyond their bounds.
    pub(crate) fn strain(&self) -> u64 {
        u64::from(self.calls()) * 1_000_000 / u64::from(self.share.load(Relaxed).max(1))
    }
}

/// A call that a VM carries.
#[derive(Debug)]
pub(crate) struct Carried {
    load: Arc<Load>,
    version: VersionKey,
    is_answered: bool,
}

impl Carried {
    /// The VM answers it: when it ends, its place in an instance is free.
    pub(crate) fn answered(self) -> Self {
        let mut carried = self;
        carried.is_answered = true;
        carried
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        let slot = slot(self.version);
        self.load.own.fetch_sub(1, Relaxed);
        let ended = if self.is_answered { Own::ENDED } else { 0 };
        self.load.slots.own[slot].fetch_add(ended.wrapping_sub(Own::RUNS), Relaxed);
        let refused = &self.load.slots.refused[slot / BITS];
        if refused.load(Relaxed) != 0 {
            refused.fetch_and(!(1 << (slot % BITS)), Relaxed);
        }
    }
}

fn slot(version: VersionKey) -> usize {
    version.spread() as usize % SLOTS
}

/// Free memory, and what idle instances hold as far as it can be told: reports name no instance's size, so each
/// counts for the mean.
fn room(status: &VmStatus) -> u64 {
    if status.memory_bytes.get() == 0 {
        return u64::MAX;
    }
    let used = status.memory_used_bytes.get();
    let free = status.memory_bytes.get().saturating_sub(used);
    let idle = status.instances.iter().filter(|instance| instance.state == "idle").count() as u64;
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
            state: state.to_owned(),
            calls_active: 0,
            concurrency: 1,
            started_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn own_calls_count_until_they_end() {
        let load = Load::new();
        let (one, two) = (load.carry(key("pay")), load.carry(key("ship")));
        assert_eq!(load.calls(), 2);
        drop((one, two));
        assert_eq!(load.calls(), 0);
    }

    #[test]
    fn a_report_of_our_own_calls_adds_nothing() {
        let load = Load::new();
        let _own = [load.carry(key("pay")), load.carry(key("pay"))];
        load.reported(&report(2, 0));
        assert_eq!(load.calls(), 2);
        // Two more had begun and ended while the report was under way, and then two fewer: jitter.
        load.reported(&report(3, 0));
        load.reported(&report(1, 0));
        assert_eq!(load.calls(), 2);
    }

    #[test]
    fn calls_of_other_gateways_are_known_in_a_few_reports_and_forgotten_in_silence() {
        let load = Load::new();
        let _own = load.carry(key("pay"));
        for _ in 0..6 {
            load.reported(&report(30, 11));
        }
        assert!((39..=41).contains(&load.calls()), "{}", load.calls());
        for _ in 0..6 {
            load.silent();
        }
        assert_eq!(load.calls(), 1);
    }

    /// What a report says of instances with four places each: how many serve, calls in them, how many start.
    fn told(serving: u32, taken: u32, starting: u32) -> Warm {
        Warm { instances: serving + starting, starting, places: 4 * serving, taken }
    }

    #[test]
    fn free_places_follow_our_calls_between_reports() {
        let load = Load::new();
        let free = |told| load.free(key("pay"), told, 4);
        let old = load.carry(key("pay"));
        load.reported(&report(1, 0));
        assert_eq!(free(told(1, 1, 0)), 3);
        let new = [(); 3].map(|()| load.carry(key("pay")));
        assert_eq!(free(told(1, 1, 0)), 0);
        let more = load.carry(key("pay"));
        assert_eq!(free(told(1, 1, 0)), 0, "never less than none");
        drop((new, more));
        assert_eq!(free(told(1, 1, 0)), 3);
        drop(old.answered());
        assert_eq!(free(told(1, 1, 0)), 4, "what the report saw running has ended");
    }

    #[test]
    fn a_call_that_began_while_the_report_was_on_its_way_has_a_place() {
        let load = Load::new();
        let _own = load.carry(key("pay"));
        load.reported(&report(0, 0));
        assert_eq!(load.free(key("pay"), told(1, 0, 0), 4), 3);
    }

    #[test]
    fn a_call_that_ended_while_the_report_was_on_its_way_has_none() {
        let load = Load::new();
        drop(load.carry(key("pay")).answered());
        load.reported(&report(1, 0));
        assert_eq!(load.free(key("pay"), told(1, 1, 0), 4), 4);
        // It stays so: somebody else runs it.
        load.reported(&report(1, 0));
        assert_eq!(load.free(key("pay"), told(1, 1, 0), 4), 3);
        assert_eq!(
            load.free(key("ship"), told(1, 1, 0), 4),
            3,
            "another function's end says nothing"
        );
    }

    #[test]
    fn calls_of_others_are_not_taken_for_those_that_ended() {
        let load = Load::new();
        (0..8).for_each(|_| load.reported(&report(3, 0)));
        for _ in 0..9 {
            drop(load.carry(key("pay")).answered());
        }
        load.reported(&report(3, 0));
        assert_eq!(load.free(key("pay"), told(1, 3, 0), 4), 2, "one of three at least may be ours");
        load.reported(&report(3, 0));
        assert_eq!(load.free(key("pay"), told(1, 3, 0), 4), 1, "none of ours ended since");
    }

    #[test]
    fn where_an_answer_came_from_an_instance_is() {
        let load = Load::new();
        let free = |told| load.free(key("pay"), told, 4);
        load.reported(&report(0, 0));
        drop(load.carry(key("pay")));
        assert_eq!((free(told(0, 0, 0)), free(told(0, 0, 1))), (0, 0), "it was refused");
        drop(load.carry(key("pay")).answered());
        assert_eq!((free(told(0, 0, 0)), free(told(0, 0, 1))), (4, 4), "it started since");
        load.reported(&report(0, 0));
        assert_eq!(free(told(0, 0, 1)), 4, "it started while the report was on its way");
        assert_eq!(free(told(0, 0, 0)), 0, "it is gone");
        load.reported(&report(0, 0));
        assert_eq!(free(told(0, 0, 1)), 0, "that is another one");
    }

    #[test]
    fn ends_of_calls_do_not_count_as_running_ones() {
        let load = Load::new();
        let _running = [(); 2].map(|()| load.carry(key("pay")));
        for _ in 0..70_000 {
            drop(load.carry(key("pay")).answered());
        }
        assert_eq!(load.free(key("pay"), told(1, 0, 0), 4), 2);
        load.reported(&report(2, 0));
        assert_eq!(load.free(key("pay"), told(1, 2, 0), 4), 2);
    }

    #[test]
    fn a_refusal_counts_until_the_next_report_or_the_end_of_a_call() {
        let load = Load::new();
        let running = load.carry(key("pay"));
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
        assert!(load.has_memory(Bytes::mib(1 << 20)), "nothing is known yet");
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
        assert!(load.has_memory(Bytes::mib(1 << 20)), "it does not tell");
    }
}
