//! The ring: which VM is a function's home, and the order of VMs from there. Depends only on the
//! VMs' ids and sizes, not on the order in which they joined, so every gateway computes the same
//! ring. Knows nothing of load or health; it is rebuilt when VMs join or leave for good. A VM that
//! drains or fails for a while stays on the ring and is passed over.
//!
//! ```text
//! home          the first point at or after hash(name)
//! k-th jump     the first point at or after nth(hash(name), k), VMs already visited are skipped
//! the rest      after [`JUMPS`], the VMs not yet visited, by id, from an offset that the name gives
//! ```
//! A new VM takes over its own functions one after the other ([`has_turn`], [`Ring::walk_since`]).
//! Until a function's turn has come and the VM has its image, the former home stays home; after
//! that it is not far along the walk.
//!
//! The first point is looked up with the crate `consistent_hash`. Its own iterator over further
//! candidates is not used: for a third candidate, its dependency breaks Rust's aliasing rules (see
//! `docs/decisions/0011-placement.md`), and jumps spread the functions of a lost or full VM over
//! all others, while the clockwise neighbour would get them all.

use super::hash;
use consistent_hash::{Node, RingHash, StaticHashRing};
use std::{
    fmt,
    hash::{Hash, Hasher},
};

/// Bytes of memory per unit of weight: those of the default instance.
const WEIGHT_UNIT: u64 = 256 << 20;
/// Points on the ring per unit of weight. A VM of 8 GiB gets 256 points, which keeps shares within
/// some 15 % of fair.
const POINTS_PER_UNIT: usize = 8;
/// Smallest weight of a VM: fewer points would make its share a matter of luck.
const MIN_WEIGHT: u32 = 4;
/// Largest weight of a VM (64 GiB): limits the ring of 200 large VMs to 8 MiB.
const MAX_WEIGHT: u32 = 256;
/// Jumps before the remaining VMs follow in order. In a small fleet all are visited by then.
const JUMPS: u64 = 64;

/// A jump number that no walk uses: its hash decides when a function's turn comes.
const TURN_JUMP: u64 = JUMPS + 1;
/// Position of the former home in the walk once a function's turn has come: after the VMs among
/// which a warm one is preferred, or no function would ever move.
const FORMER_HOME_POSITION: usize = 3;

/// Weight of a VM: its memory in units of the default instance's memory.
pub fn weight(memory_bytes: u64) -> u32 {
    let units = (memory_bytes + WEIGHT_UNIT / 2) / WEIGHT_UNIT;
    u32::try_from(units).unwrap_or(MAX_WEIGHT).clamp(MIN_WEIGHT, MAX_WEIGHT)
}

/// The ring. VMs are identified by their index in the list from which it was built.
pub struct Ring {
    points: StaticHashRing<'static, u64, u32, IdentityHash>,
    vms: usize,
}

impl Ring {
    /// A ring of these VMs: id and [`weight`]. Ids are unique and sorted.
    pub fn new<'a>(vms: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        Self::without(vms, |_| false)
    }

    /// A ring without the VMs that `left_out` names; the others keep their indices.
    pub fn without<'a>(
        vms: impl IntoIterator<Item = (&'a str, u32)>,
        left_out: impl Fn(usize) -> bool,
    ) -> Self {
        let vms = vms.into_iter().zip(0_u32..);
        let vms: Vec<_> = vms.filter(|(_, index)| !left_out(*index as usize)).collect();
        let nodes = vms.iter().map(|((id, weight), index)| {
            let points = *weight as usize * POINTS_PER_UNIT;
            Node::new(hash::of_name(id)).value(*index).quantity(points)
        });
        Self { points: StaticHashRing::new(IdentityHash, nodes), vms: vms.len() }
    }

    /// Number of VMs on the ring.
    pub fn len(&self) -> usize {
        self.vms
    }

    /// Whether there is no VM.
    pub fn is_empty(&self) -> bool {
        self.vms == 0
    }

    /// All VMs in the order of this function, home first, each once. `key` is [`hash::of_name`]
    /// of the function's name.
    pub fn walk(&self, key: u64) -> Walk<'_> {
        Walk { ring: self, key, steps: 0, visited: Visited::default(), former: None }
    }

    /// The walk while this function's home is new: `former` is the home before it, and remains the
    /// home as long as the function `stays`.
    pub fn walk_since(&self, key: u64, former: usize, stays: bool) -> Walk<'_> {
        Walk {
            former: Some((if stays { 0 } else { FORMER_HOME_POSITION }, former)),
            ..self.walk(key)
        }
    }

    /// The home VM of this function; `None` on an empty ring.
    pub fn home(&self, key: u64) -> Option<usize> {
        self.owner(key)
    }

    fn owner(&self, hash: u64) -> Option<usize> {
        self.points.calc_candidates(&hash).next().map(|node| node.value as usize)
    }
}

/// Whether a function's turn to move to its new home has come; `grown` is the part of its share
/// that the new VM takes by now, from 0 to 1.
pub fn has_turn(key: u64, grown: f64) -> bool {
    grown >= 1.0 || (hash::nth(key, TURN_JUMP) as f64) < grown * u64::MAX as f64
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("vms", &self.vms).field("points", &self.points.len()).finish()
    }
}

/// A function's order of VMs. Lazy: looks up only what is requested.
#[derive(Debug)]
pub struct Walk<'a> {
    ring: &'a Ring,
    key: u64,
    /// Jumps and steps made so far.
    steps: u64,
    visited: Visited,
    /// The former home and the number of VMs after which it is visited, earlier than its jump would
    /// come.
    former: Option<(usize, usize)>,
}

impl Iterator for Walk<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let vms = self.ring.vms as u64;
        if let Some((_, former)) = self.former.take_if(|(after, _)| *after == self.visited.count)
            && self.visited.first_time(former)
        {
            return Some(former);
        }
        while self.visited.count < self.ring.vms {
            let steps = self.steps;
            self.steps += 1;
            let vm = match steps {
                0 => self.ring.owner(self.key)?,
                jump @ 1..=JUMPS => self.ring.owner(hash::nth(self.key, jump))?,
                step => ((self.key % vms + step) % vms) as usize,
            };
            if self.visited.first_time(vm) {
                return Some(vm);
            }
        }
        None
    }
}

/// The VMs that a walk has visited. No allocation for the first 256.
#[derive(Debug, Default)]
struct Visited {
    count: usize,
    first: [u64; 4],
    more: Vec<u64>,
}

impl Visited {
    fn first_time(&mut self, vm: usize) -> bool {
        let (word, bit) = (vm / 64, 1 << (vm % 64));
        let word = match word.checked_sub(self.first.len()) {
            None => &mut self.first[word],
            Some(word) => {
                if self.more.len() <= word {
                    self.more.resize(word + 1, 0);
                }
                &mut self.more[word]
            }
        };
        let new = *word & bit == 0;
        *word |= bit;
        self.count += usize::from(new);
        new
    }
}

/// Passes keys through, because they are hashes already; a VM's points follow from its key by
/// [`hash::nth`].
#[derive(Clone, Copy, Debug)]
struct IdentityHash;

impl RingHash for IdentityHash {
    fn hash_item<T: Hash>(&self, item: &T) -> u64 {
        let mut hasher = PassThroughHasher(0);
        item.hash(&mut hasher);
        hasher.0
    }

    fn hash_vnode<K: Hash>(&self, node_key: &K, vnode_seq: usize) -> u64 {
        hash::nth(self.hash_item(node_key), vnode_seq as u64)
    }
}

/// A hasher that returns the one `u64` it is given, unchanged.
struct PassThroughHasher(u64);

impl Hasher for PassThroughHasher {
    fn write(&mut self, bytes: &[u8]) {
        // Only `u64`s are hashed here; this is a fallback that still distinguishes other input.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests;
