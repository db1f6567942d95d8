//! VMs as far as placement can see them: instances of functions, one call in each, memory for a
//! number of them. An idle instance stays for a while, and is evicted earlier when another function
//! needs its memory.

use super::traffic::Call;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
};

/// Instances that fit in a VM's memory: 12 GiB.
pub(super) const SLOTS: usize = 48;
/// CPUs of a VM.
pub(super) const CORES: u32 = 4;
/// Keep-alive of an idle instance, in seconds: shorter than the default of five minutes, as the
/// runs are short.
const IDLE: f64 = 60.0;
/// Duration of a start that no call waits for, in seconds: from an image, on a busy machine.
const START: f64 = 1.0;

/// One VM.
#[derive(Debug, Default)]
pub(super) struct Vm {
    /// Stable; the index changes when another one leaves.
    pub(super) id: String,
    /// When it joined.
    pub(super) since: f64,
    /// Calls that run.
    pub(super) load: u32,
    /// Instances, busy or idle.
    instances: usize,
    /// Busy instances of each function.
    busy: HashMap<usize, u32>,
    /// Idle ones: since when, the oldest first.
    idle: HashMap<usize, Vec<f64>>,
    /// All idle ones, by when they became so; some are busy again or gone by now.
    ages: BTreeMap<u64, usize>,
}

/// An event at the end of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Call,
    Start,
}

/// The simulated fleet.
#[derive(Debug)]
pub(super) struct World {
    pub(super) vms: Vec<Vm>,
    pub(super) now: f64,
    /// Calls that run on all of them.
    pub(super) calls: u64,
    /// Ends of calls, and of starts that none waits for: microsecond, VM's id, function.
    ends: BinaryHeap<Reverse<(u64, String, usize, What)>>,
    came: usize,
    /// Distinguishes instances that became idle in the same microsecond.
    ticket: u64,
}

impl World {
    pub(super) fn new(vms: usize) -> Self {
        let mut world = Self {
            vms: Vec::new(),
            now: 0.0,
            calls: 0,
            ends: BinaryHeap::new(),
            came: 0,
            ticket: 0,
        };
        for _ in 0..vms {
            world.join();
        }
        // These exist before the run.
        world.vms.iter_mut().for_each(|vm| vm.since = -3600.0);
        world
    }

    /// A VM joins.
    pub(super) fn join(&mut self) {
        let id = format!("i-{:08x}", self.came);
        self.came += 1;
        self.vms.push(Vm { id, since: self.now, ..Vm::default() });
        self.vms.sort_by(|a, b| a.id.cmp(&b.id));
    }

    /// A VM leaves: one that was there from the start. Its calls end elsewhere and are not counted.
    pub(super) fn leave(&mut self) {
        let middle = self.vms.len() / 2;
        let gone = self.vms.remove(middle);
        self.calls -= u64::from(gone.load);
    }

    /// Ends what has ended by now.
    pub(super) fn advance(&mut self, now: f64) {
        self.now = now;
        while let Some(Reverse((at, ..))) = self.ends.peek()
            && *at <= micros(now)
        {
            let Some(Reverse((at, id, function, what))) = self.ends.pop() else { break };
            let Ok(vm) = self.vms.binary_search_by(|vm| vm.id.cmp(&id)) else { continue };
            self.ticket += 1;
            self.calls -= u64::from(what == What::Call);
            self.vms[vm].ends(what, function, at as f64 / 1e6, self.ticket);
        }
    }

    /// Runs a call on this VM: whether an instance was warm; `None` when there is no room.
    pub(super) fn run(&mut self, vm: usize, call: &Call) -> Option<bool> {
        let now = self.now;
        let warm = self.vms[vm].call_begins(call.function, now)?;
        self.calls += 1;
        let end = micros(call.at + call.takes);
        self.ends.push(Reverse((end, self.vms[vm].id.clone(), call.function, What::Call)));
        Some(warm)
    }

    /// Starts an instance that no call waits for on this VM, unless it has one, or no memory.
    pub(super) fn make_ready(&mut self, vm: usize, function: usize) {
        let known = &mut self.vms[vm];
        if known.warm(function, self.now) + known.busy(function) == 0
            && known.start_begins(function)
        {
            let end = micros(self.now + START);
            self.ends.push(Reverse((end, known.id.clone(), function, What::Start)));
        }
    }

    /// The largest load over the mean one.
    pub(super) fn imbalance(&self) -> f64 {
        let loads = self.vms.iter().map(|vm| f64::from(vm.load));
        let mean = loads.clone().sum::<f64>() / self.vms.len() as f64;
        if mean == 0.0 { 1.0 } else { loads.fold(0.0, f64::max) / mean }
    }

    /// VMs with an instance of a function, over the functions that have any.
    pub(super) fn spread(&self) -> f64 {
        let mut holders: HashMap<usize, u32> = HashMap::new();
        for vm in &self.vms {
            let has = |function: &usize| vm.warm(*function, self.now) + vm.busy(*function) > 0;
            let functions: std::collections::HashSet<_> =
                vm.idle.keys().chain(vm.busy.keys()).copied().filter(has).collect();
            for function in functions {
                *holders.entry(function).or_default() += 1;
            }
        }
        f64::from(holders.values().sum::<u32>()) / holders.len().max(1) as f64
    }
}

impl Vm {
    /// Idle instances of a function.
    pub(super) fn warm(&self, function: usize, now: f64) -> u32 {
        let idle = self.idle.get(&function);
        idle.map_or(0, |since| since.iter().filter(|since| now - **since < IDLE).count() as u32)
    }

    fn busy(&self, function: usize) -> u32 {
        self.busy.get(&function).copied().unwrap_or(0)
    }

    /// Whether a call could begin, by a start if needed.
    pub(super) fn has_room(&self) -> bool {
        (self.load as usize) < SLOTS
    }

    fn call_begins(&mut self, function: usize, now: f64) -> Option<bool> {
        let idle = self.idle.entry(function).or_default();
        let expired = idle.partition_point(|since| now - *since >= IDLE);
        idle.drain(..expired);
        self.instances -= expired;
        let is_warm = idle.pop().is_some();
        if is_warm {
            *self.busy.entry(function).or_default() += 1;
        } else if !self.start_begins(function) {
            return None;
        }
        self.load += 1;
        Some(is_warm)
    }

    /// Adds an instance, busy with its start. `false` when there is no memory.
    fn start_begins(&mut self, function: usize) -> bool {
        if self.instances >= SLOTS && !self.evict_one() {
            return false;
        }
        self.instances += 1;
        *self.busy.entry(function).or_default() += 1;
        true
    }

    fn ends(&mut self, what: What, function: usize, at: f64, ticket: u64) {
        if let Some(busy) = self.busy.get_mut(&function) {
            *busy -= 1;
        }
        self.load -= u32::from(what == What::Call);
        self.idle.entry(function).or_default().push(at);
        self.ages.insert(ticket, function);
    }

    /// Evicts the instance that has been idle longest.
    fn evict_one(&mut self) -> bool {
        while let Some((_, function)) = self.ages.pop_first() {
            let idle = self.idle.entry(function).or_default();
            if !idle.is_empty() {
                idle.remove(0);
                self.instances -= 1;
                return true;
            }
        }
        false
    }
}

fn micros(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}
