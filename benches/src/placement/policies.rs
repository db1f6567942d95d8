//! Placement policies. [`Policy::Epsilon`] is the gateway's own code with its default settings; the
//! others are common alternatives.

use super::{
    traffic::{Call, Rng},
    world::{CORES, SLOTS, World},
};
use epsilon_placement::{
    bounded_load::{Balance, Totals},
    choice::{self, Candidate, Choice, Locality, Penalty, Prewarm},
    hash,
    ring::{self, Ring},
};
use std::time::Duration;

/// The gateway's defaults.
const BALANCE: Balance =
    Balance { factor: 1.5, calls_per_core: 2.0, slow_start: Duration::from_secs(30) };
/// VMs that one call is tried on, for every policy.
const TRIES: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// Home, bounded loads, warm neighbours.
    Epsilon,
    /// Home on the same ring, whatever its load.
    Ring,
    /// Hash of the name, modulo the number of VMs.
    Modulo,
    /// A random VM.
    Random,
    /// The VM with the fewest calls.
    LeastLoaded,
}

impl Policy {
    pub(super) const ALL: [Self; 5] =
        [Self::Epsilon, Self::Ring, Self::Modulo, Self::Random, Self::LeastLoaded];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Epsilon => "**Epsilon**",
            Self::Ring => "ring without bound",
            Self::Modulo => "hash % VMs",
            Self::Random => "random",
            Self::LeastLoaded => "least loaded",
        }
    }

    /// Whether a function belongs to a VM, so that it can move.
    pub(super) fn has_homes(self) -> bool {
        matches!(self, Self::Epsilon | Self::Ring | Self::Modulo)
    }
}

/// How a call was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placed {
    /// A free instance.
    Warm,
    /// It waited for a start; `needless`: home had a free instance.
    Cold { needless: bool },
    /// No VM had capacity.
    NoRoom,
}

/// A policy with its state.
#[derive(Debug)]
pub(super) struct Placing {
    policy: Policy,
    ring: Ring,
    rng: Rng,
    /// Share and floor of each VM, as of this second, and the sum of the shares.
    shares: Vec<(u32, u32)>,
    sum: u64,
}

impl Placing {
    pub(super) fn new(policy: Policy, world: &World, seed: u64) -> Self {
        let ring = ring(world);
        let rng = Rng::new(seed);
        let mut placing = Self { policy, ring, rng, shares: Vec::new(), sum: 0 };
        placing.weigh(world);
        placing
    }

    /// Advances by a second: VMs that have just joined have grown.
    pub(super) fn weigh(&mut self, world: &World) {
        let share = |since: f64| {
            let age = Duration::from_secs_f64(world.now - since);
            (BALANCE.share(weight(), age), BALANCE.floor(CORES * 1000, age))
        };
        self.shares = world.vms.iter().map(|vm| share(vm.since)).collect();
        self.sum = self.shares.iter().map(|(share, _)| u64::from(*share)).sum();
    }

    /// Places a call.
    pub(super) fn place(&mut self, world: &mut World, call: &Call) -> Placed {
        let mut tried = Vec::new();
        let home = self.policy.has_homes().then(|| self.home(world, call.function));
        let was_warm = home.is_some_and(|home| world.vms[home].warm(call.function, world.now) > 0);
        while tried.len() < TRIES.min(world.vms.len()) {
            let Some(vm) = self.choose(world, call, &tried) else { break };
            match world.run(vm, call) {
                Some(true) => return Placed::Warm,
                Some(false) => return Placed::Cold { needless: was_warm },
                None => tried.push(vm),
            }
        }
        Placed::NoRoom
    }

    /// Changes the fleet; returns the share of functions whose home changed.
    pub(super) fn moved(
        &mut self,
        world: &mut World,
        functions: usize,
        change: impl FnOnce(&mut World),
    ) -> f64 {
        let homes = |placing: &Self, world: &World| -> Vec<String> {
            (0..functions).map(|f| world.vms[placing.home(world, f)].id.clone()).collect()
        };
        let before = homes(self, world);
        change(world);
        self.ring = ring(world);
        self.weigh(world);
        let after = homes(self, world);
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        moved as f64 / functions as f64
    }

    fn home(&self, world: &World, function: usize) -> usize {
        let key = key(function);
        match self.policy {
            Policy::Modulo => (key % world.vms.len() as u64) as usize,
            Policy::Epsilon | Policy::Ring | Policy::Random | Policy::LeastLoaded => {
                self.ring.walk(key).next().unwrap()
            }
        }
    }

    fn choose(&mut self, world: &mut World, call: &Call, tried: &[usize]) -> Option<usize> {
        let vms = world.vms.len();
        match self.policy {
            Policy::Epsilon => {
                let pick = self.choose_as_the_gateway(world, call, tried)?;
                // Images are on all VMs here.
                if let Some((Prewarm::StartInstance, vm)) = pick.prewarm {
                    world.make_ready(vm, call.function);
                }
                Some(pick.vm)
            }
            // One home and no alternative.
            Policy::Ring | Policy::Modulo => {
                tried.is_empty().then(|| self.home(world, call.function))
            }
            Policy::Random => Some((self.rng.unit() * vms as f64) as usize),
            Policy::LeastLoaded => {
                let least = (0..vms).filter(|vm| !tried.contains(vm));
                // Ties are broken from a random VM on: else the first VM gets them all.
                let from = (self.rng.unit() * vms as f64) as usize;
                least.min_by_key(|vm| (world.vms[*vm].load, (vm + vms - from) % vms))
            }
        }
    }

    /// The gateway knows of each instance whether it is free: it counts its own calls between two
    /// reports.
    fn choose_as_the_gateway(&self, world: &World, call: &Call, tried: &[usize]) -> Option<Choice> {
        let vms = world.vms.len();
        let totals = Totals { calls: world.calls, shares: self.sum, vms: vms as u32 };
        let look = |vm: usize| {
            let ((share, floor), known) = (self.shares[vm], &world.vms[vm]);
            let penalty = match known.load {
                _ if !known.has_room() => Penalty::Room,
                load if load >= BALANCE.bound(share, floor, totals) => Penalty::Bound,
                _ => Penalty::Nothing,
            };
            Candidate {
                penalty,
                locality: match known.warm(call.function, world.now) {
                    0 => Locality::Nothing,
                    1.. => Locality::Warm,
                },
                load_ratio: u64::from(known.load) * 1_000_000 / u64::from(share),
                tried: tried.contains(&vm),
            }
        };
        let walk = self.ring.walk(key(call.function));
        choice::choose(walk, vms > tried.len() + 1, look, |_| ())
    }
}

fn ring(world: &World) -> Ring {
    Ring::new(world.vms.iter().map(|vm| (vm.id.as_str(), weight())))
}

fn weight() -> u32 {
    ring::weight(SLOTS as u64 * (256 << 20))
}

fn key(function: usize) -> u64 {
    hash::of_name(&format!("function-{function}"))
}
