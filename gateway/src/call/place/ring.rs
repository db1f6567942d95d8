//! The ring: which VM is a function's home, and where it goes from there. Depends on the VMs' ids and sizes alone, not on
//! the order in which they came, so every gateway draws the same one. Knows nothing of load or health; it is made anew
//! when VMs come or go for good. One that drains or fails for a while keeps its place and is passed over.
//!
//! ```text
//! home          the first point at or after hash(name)
//! k-th jump     the first point at or after nth(hash(name), k), VMs that were met before left out
//! the rest      after [`JUMPS`], whoever was not met, by id, beginning where the name says
//! ```
//! A VM that has just come takes the functions that are its own one after the other ([`has_turn`], [`Ring::walk_since`]): until a
//! function's turn has come, and its image, the VM that was its home stays so; after that it is not far along the walk.
//!
//! The first point is looked up in the crate `consistent_hash`. Its own list of next candidates is not
//! used: asked for a third one, its dependency breaks Rust's aliasing rules (see `docs/decisions/0011-placement.md`), and a jump
//! spreads the functions of a lost or full VM over all others, where the clockwise neighbour would get them all.

use super::stable;
use consistent_hash::{Node, RingHash, StaticHashRing};
use std::{
    fmt,
    hash::{Hash, Hasher},
};

/// Bytes of memory that count as one place: the default instance.
const PLACE: u64 = 256 << 20;
/// Points on the ring for each place. A VM of 8 GiB gets 256 points, which keeps shares within some 15 % of fair.
const POINTS_PER_PLACE: usize = 8;
/// Fewest places that a VM counts for: fewer points would make its share a matter of luck.
const FEWEST_PLACES: u32 = 4;
/// Most places that a VM counts for (64 GiB): bounds the ring of 200 large VMs to 8 MiB.
const MOST_PLACES: u32 = 256;
/// Jumps before the rest is taken in order. With a few VMs all are met by then.
const JUMPS: u64 = 64;

/// Number of the jump that nobody makes: it says when a function's turn comes.
const TURN: u64 = JUMPS + 1;
/// Where in the walk the old home stands once a function's turn has come: behind the VMs among which a warm one is preferred,
/// or nothing would ever move.
const BEHIND: usize = 3;

/// How much a VM counts, in places of the default instance's memory.
pub fn weight(memory_bytes: u64) -> u32 {
    let places = (memory_bytes + PLACE / 2) / PLACE;
    u32::try_from(places).unwrap_or(MOST_PLACES).clamp(FEWEST_PLACES, MOST_PLACES)
}

/// See the module. VMs are known by their index in the list that the ring was made from.
pub struct Ring {
    points: StaticHashRing<'static, u64, u32, AsItIs>,
    vms: usize,
}

impl Ring {
    /// A ring of these VMs: id and [`weight`]. Ids differ and come in their order.
    pub fn new<'a>(vms: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        Self::without(vms, |_| false)
    }

    /// The same as if those were not there; the others keep their indices.
    pub fn without<'a>(
        vms: impl IntoIterator<Item = (&'a str, u32)>,
        left_out: impl Fn(usize) -> bool,
    ) -> Self {
        let vms = vms.into_iter().zip(0_u32..);
        let vms: Vec<_> = vms.filter(|(_, index)| !left_out(*index as usize)).collect();
        let nodes = vms.iter().map(|((id, weight), index)| {
            let points = *weight as usize * POINTS_PER_PLACE;
            Node::new(stable::of_name(id)).value(*index).quantity(points)
        });
        Self { points: StaticHashRing::new(AsItIs, nodes), vms: vms.len() }
    }

    /// How many VMs it is made of.
    pub fn len(&self) -> usize {
        self.vms
    }

    /// Whether there is no VM.
    pub fn is_empty(&self) -> bool {
        self.vms == 0
    }

    /// All VMs in the order of this function, home first, each once. `key` is [`stable::of_name`] of its name.
    pub fn walk(&self, key: u64) -> Walk<'_> {
        Walk { ring: self, key, asked: 0, met: Met::default(), former: None }
    }

    /// The same while this function's home is new: `former` was it before, and still is it as long as the function `stays`.
    pub fn walk_since(&self, key: u64, former: usize, stays: bool) -> Walk<'_> {
        Walk { former: Some((if stays { 0 } else { BEHIND }, former)), ..self.walk(key) }
    }

    /// The VM that is home to this function; `None` when there is no VM.
    pub fn home(&self, key: u64) -> Option<usize> {
        self.owner(key)
    }

    fn owner(&self, hash: u64) -> Option<usize> {
        self.points.calc_candidates(&hash).next().map(|node| node.value as usize)
    }
}

/// Whether a function's turn to move to its new home has come, once that has taken so much of its share: from 0 to 1.
pub fn has_turn(key: u64, grown: f64) -> bool {
    grown >= 1.0 || (stable::nth(key, TURN) as f64) < grown * u64::MAX as f64
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("vms", &self.vms).field("points", &self.points.len()).finish()
    }
}

/// The way of one function over the VMs. Looks up only what is asked for.
#[derive(Debug)]
pub struct Walk<'a> {
    ring: &'a Ring,
    key: u64,
    /// Jumps and steps made so far.
    asked: u64,
    met: Met,
    /// A VM that is met earlier than the jumps would: after so many others.
    former: Option<(usize, usize)>,
}

impl Iterator for Walk<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let vms = self.ring.vms as u64;
        if let Some((_, former)) = self.former.take_if(|(after, _)| *after == self.met.count)
            && self.met.first_time(former)
        {
            return Some(former);
        }
        while self.met.count < self.ring.vms {
            let asked = self.asked;
            self.asked += 1;
            let vm = match asked {
                0 => self.ring.owner(self.key)?,
                jump @ 1..=JUMPS => self.ring.owner(stable::nth(self.key, jump))?,
                step => ((self.key % vms + step) % vms) as usize,
            };
            if self.met.first_time(vm) {
                return Some(vm);
            }
        }
        None
    }
}

/// The VMs that a walk has met. No allocation for the first 256.
#[derive(Debug, Default)]
struct Met {
    count: usize,
    first: [u64; 4],
    more: Vec<u64>,
}

impl Met {
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

/// Keys are hashes already; a VM's points follow from its key by [`stable::nth`].
#[derive(Clone, Copy, Debug)]
struct AsItIs;

impl RingHash for AsItIs {
    fn hash_item<T: Hash>(&self, item: &T) -> u64 {
        let mut taken = Taken(0);
        item.hash(&mut taken);
        taken.0
    }

    fn hash_vnode<K: Hash>(&self, node_key: &K, vnode_seq: usize) -> u64 {
        stable::nth(self.hash_item(node_key), vnode_seq as u64)
    }
}

/// Takes the one `u64` that it is given, unchanged.
struct Taken(u64);

impl Hasher for Taken {
    fn write(&mut self, bytes: &[u8]) {
        // Only `u64`s are hashed here; anything else would still be told apart.
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
