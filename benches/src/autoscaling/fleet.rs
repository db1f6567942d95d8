//! VMs that are only counted: slots, calls that run on them, a queue in front. A call takes a slot
//! of the first VM that has one, in a fixed order, as the ring fills a fleet; with none it waits,
//! at most as long as `vm_agent.queue_wait`, and is refused then.

use super::{STEPS, traffic::SplitMix};
use epsilon_autoscaler::sample::Sample;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

/// Slots of a VM: two cores, eight each.
pub(crate) const SLOTS: usize = 16;
/// Longest wait of a call, in steps: the default of `vm_agent.queue_wait`.
const WAIT: u64 = 10 * STEPS;
/// Largest share of the VMs that leaves at once: as in the gateway.
const LEAVING_SHARE: f64 = 0.1;

#[derive(Debug)]
struct Vm {
    id: u64,
    ready_at: u64,
    calls: usize,
    leaving: bool,
}

/// The counted fleet.
#[derive(Debug)]
pub(crate) struct Fleet {
    vms: Vec<Vm>,
    /// Ends of calls: the step, and the VM.
    ends: BinaryHeap<Reverse<(u64, u64)>>,
    /// Waiting calls: since when, and how long each will run.
    queue: VecDeque<(u64, u64)>,
    random: SplitMix,
    made: u64,
    now: u64,
    pub(crate) delayed: u64,
    pub(crate) refused: u64,
}

impl Fleet {
    /// This many VMs, booted.
    pub(crate) fn new(vms: u32) -> Self {
        let vm = |id| Vm { id, ready_at: 0, calls: 0, leaving: false };
        Self {
            vms: (0..u64::from(vms)).map(vm).collect(),
            ends: BinaryHeap::new(),
            queue: VecDeque::new(),
            random: SplitMix(11),
            made: u64::from(vms),
            now: 0,
            delayed: 0,
            refused: 0,
        }
    }

    /// One step, a tenth of a second: calls end, wait, begin.
    pub(crate) fn step(&mut self, now: u64, calls: &[u64]) {
        self.now = now;
        while let Some(&Reverse((_, id))) = self.ends.peek().filter(|Reverse((at, _))| *at <= now) {
            self.ends.pop();
            if let Some(vm) = self.vms.iter_mut().find(|vm| vm.id == id) {
                vm.calls -= 1;
            }
        }
        self.vms.retain(|vm| !(vm.leaving && vm.calls == 0));
        self.queue.extend(calls.iter().map(|length| (now, *length)));
        while let Some(&(since, length)) = self.queue.front() {
            if since + WAIT < now {
                self.refused += 1;
            } else if self.begin(now + length) {
                self.delayed += u64::from(since < now);
            } else {
                break;
            }
            self.queue.pop_front();
        }
    }

    fn begin(&mut self, ends: u64) -> bool {
        let now = self.now;
        let free = |vm: &&mut Vm| !vm.leaving && vm.ready_at <= now && vm.calls < SLOTS;
        let Some(vm) = self.vms.iter_mut().find(free) else { return false };
        vm.calls += 1;
        self.ends.push(Reverse((ends, vm.id)));
        true
    }

    /// Scales to this many VMs, as `autoscaler/src/plan.rs` does: leaving ones come back first, then new
    /// ones boot for 60 to 90 s; the emptiest leaves, a tenth at once, and is gone when its calls
    /// are over.
    pub(crate) fn scale(&mut self, now: u64, wanted: u32) {
        let wanted = wanted as usize;
        let staying = self.vms.iter().filter(|vm| !vm.leaving).count();
        if wanted > staying {
            let mut leaving: Vec<&mut Vm> = self.vms.iter_mut().filter(|vm| vm.leaving).collect();
            leaving.sort_by_key(|vm| Reverse(vm.calls));
            let mut missing = wanted - staying;
            for vm in leaving.into_iter().take(missing) {
                vm.leaving = false;
                missing -= 1;
            }
            for _ in 0..missing {
                let boot = (60.0 + 30.0 * self.random.unit()) * STEPS as f64;
                let ready_at = now + boot as u64;
                self.vms.push(Vm { id: self.made, ready_at, calls: 0, leaving: false });
                self.made += 1;
            }
            return;
        }
        let at_once = ((self.vms.len() as f64 * LEAVING_SHARE) as usize).max(1);
        let leaving = self.vms.len() - staying;
        let serving = self.serving().count();
        let mut candidates: Vec<&mut Vm> =
            self.vms.iter_mut().filter(|vm| !vm.leaving && vm.ready_at <= now).collect();
        candidates.sort_by_key(|vm| (vm.calls, Reverse(vm.id)));
        let count = (staying - wanted).min(at_once.saturating_sub(leaving));
        for vm in candidates.into_iter().take(count.min(serving.saturating_sub(wanted))) {
            vm.leaving = true;
        }
    }

    fn serving(&self) -> impl Iterator<Item = &Vm> {
        self.vms.iter().filter(|vm| !vm.leaving && vm.ready_at <= self.now)
    }

    /// VMs that are paid for.
    pub(crate) fn vms(&self) -> usize {
        self.vms.len()
    }

    /// VMs that take calls.
    pub(crate) fn ready(&self) -> usize {
        self.serving().count()
    }

    /// The used share of their slots: what a metric of the machines would show.
    pub(crate) fn utilisation(&self) -> f64 {
        let calls: usize = self.serving().map(|vm| vm.calls).sum();
        calls as f64 / (self.ready().max(1) * SLOTS) as f64
    }

    /// The input of the gateway's policy.
    pub(crate) fn sample(&self) -> Sample {
        let running: usize = self.vms.iter().map(|vm| vm.calls).sum();
        let places = (self.ready() * SLOTS) as f64;
        let queued = (self.queue.len() as f64).min(places);
        Sample {
            demand: running as f64 + queued,
            queued,
            places,
            outside: 0.0,
            vm_places: SLOTS as f64,
            ready: self.ready() as u32,
            current: self.vms.len() as u32,
        }
    }
}
