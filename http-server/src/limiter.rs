//! Limits the connections of a listener, in all and by address. Unused connections never lock out
//! others: when there is no room, the one that has been idle for longest is closed, which HTTP
//! allows at any time.
//!
//! ```text
//! too many of this address? ─ yes ─▶ close idle ones of it, else refuse
//! too many altogether?      ─ yes ─▶ close idle ones, else a slot of the reserve, else wait
//! ```
//! A connection to be closed gets a request to close ([`Occupant::close`]) and is not counted any
//! more; if a request reached it meanwhile, it stays open and counts again ([`Slot::keep`]). IPv6
//! addresses count by their /64, because one caller has all of it. Used by `listen.rs`; whether a
//! connection is idle is known by its server.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// A connection idle for less is not closed: its caller may be about to send.
const SHORTEST_IDLE: Duration = Duration::from_secs(1);
/// Divisor: the share of all slots that is freed at once, so that not every newcomer scans all
/// connections.
const BATCH: usize = 100;

/// Limits of a listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections at most.
    pub connections: usize,
    /// Open connections of one address at most.
    pub per_address: usize,
    /// Slots beyond `connections` that serve little: enough for health checks.
    pub reserve: usize,
    /// Addresses to which `per_address` does not apply.
    pub exempt: Exempt,
}

/// Addresses that carry many callers, such as proxies.
#[derive(Clone)]
pub struct Exempt(Arc<dyn Fn(IpAddr) -> bool + Send + Sync>);

impl Exempt {
    /// Addresses for which `holds` is true.
    pub fn new(holds: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(holds))
    }

    /// No address.
    pub fn none() -> Self {
        Self::new(|_| false)
    }
}

impl fmt::Debug for Exempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exempt")
    }
}

/// A connection, as the limiter sees it. It must not own its [`Slot`]: it may be dropped under the
/// limiter's lock.
pub trait Occupant: Send + Sync {
    /// How long no request has been in flight on it; `None` while one is.
    fn idle_for(&self) -> Option<Duration>;

    /// Asks it to close unless a request is in flight by then.
    fn close(&self);
}

/// The connection table of one listener.
#[derive(Debug)]
pub struct Limiter {
    limits: Limits,
    table: Mutex<Table>,
    /// Copy of the table's count, readable without the lock.
    used: AtomicUsize,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    slots: HashMap<u64, Entry>,
    next: u64,
    per_address: HashMap<IpAddr, usize>,
    used: usize,
    reserved: usize,
}

struct Entry {
    /// `None`: not counted by address.
    address: Option<IpAddr>,
    kind: Kind,
    is_trusted: bool,
    occupant: Option<Weak<dyn Occupant>>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("address", &self.address).field("kind", &self.kind).finish()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Regular,
    Reserve,
    /// Requested to close; not counted.
    Closing {
        was_reserve: bool,
    },
}

/// The answer to a new connection.
#[derive(Debug)]
pub enum Admission {
    /// It may stay while it holds this slot.
    Slot(Slot),
    /// There is no room, not even in the reserve. [`Limiter::freed`] resolves when to try again.
    Full,
    /// Its address has too many connections.
    TooMany,
}

impl Limiter {
    /// An empty table.
    pub fn new(limits: Limits) -> Arc<Self> {
        let table = Mutex::default();
        let used = AtomicUsize::new(0);
        Arc::new(Self { limits, table, used, freed: Notify::new() })
    }

    /// A slot for a connection of this address, if there is room.
    pub fn admit(self: &Arc<Self>, peer: IpAddr) -> Admission {
        let Limits { connections, per_address, reserve, ref exempt } = self.limits;
        let peer = peer.to_canonical();
        let address = (!(exempt.0)(peer)).then(|| network(peer));
        let mut table = self.table.lock();
        if let Some(address) = address
            && table.of(address) >= per_address
            && table.close_idle((per_address / BATCH).max(1), SHORTEST_IDLE, |entry| {
                entry.address == Some(address) && entry.kind == Kind::Regular
            }) == 0
        {
            return Admission::TooMany;
        }
        let is_regular = |entry: &Entry| entry.kind == Kind::Regular;
        let is_full = table.used >= connections
            && table.close_idle((connections / BATCH).max(1), SHORTEST_IDLE, is_regular) == 0;
        // Unused connections of the reserve are closed at once: its slots are for heads that are
        // arriving.
        if is_full
            && table.reserved >= reserve
            && (reserve == 0
                || table.close_idle(1, Duration::ZERO, |entry| entry.kind == Kind::Reserve) == 0)
        {
            return Admission::Full;
        }
        let kind = if is_full { Kind::Reserve } else { Kind::Regular };
        let id = table.next;
        table.next += 1;
        table.count(kind, address);
        let entry = Entry { address, kind, is_trusted: false, occupant: None };
        table.slots.insert(id, entry);
        self.used.store(table.used, Relaxed);
        Admission::Slot(Slot {
            limiter: Arc::clone(self),
            id,
            is_reserve: is_full,
            is_trusted: AtomicBool::new(false),
        })
    }

    /// Whether more than four fifths of the slots are taken: idle connections should be closed
    /// early.
    pub fn is_crowded(&self) -> bool {
        self.used.load(Relaxed) * 5 > self.limits.connections * 4
    }

    /// Waits until a slot is freed.
    pub(crate) async fn freed(&self) {
        self.freed.notified().await;
    }
}

impl Table {
    fn of(&self, address: IpAddr) -> usize {
        self.per_address.get(&address).copied().unwrap_or(0)
    }

    fn count(&mut self, kind: Kind, address: Option<IpAddr>) {
        match kind {
            Kind::Regular => self.used += 1,
            Kind::Reserve => self.reserved += 1,
            Kind::Closing { .. } => return,
        }
        if let Some(address) = address {
            *self.per_address.entry(address).or_default() += 1;
        }
    }

    fn uncount(&mut self, kind: Kind, address: Option<IpAddr>) {
        match kind {
            Kind::Regular => self.used -= 1,
            Kind::Reserve => self.reserved -= 1,
            Kind::Closing { .. } => return,
        }
        self.uncount_address(address);
    }

    fn uncount_address(&mut self, address: Option<IpAddr>) {
        let Some(address) = address else { return };
        if let Some(count) = self.per_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.per_address.remove(&address);
            }
        }
    }

    /// Requests up to `most` connections to close: unauthenticated ones first, then those idle for
    /// longest. Returns their number.
    fn close_idle(
        &mut self,
        most: usize,
        shortest: Duration,
        is_one: impl Fn(&Entry) -> bool,
    ) -> usize {
        let mut idle: Vec<_> = self
            .slots
            .iter()
            .filter(|(_, entry)| is_one(entry))
            .filter_map(|(id, entry)| {
                let occupant = entry.occupant.as_ref()?.upgrade()?;
                let idle_for = occupant.idle_for().filter(|idle_for| *idle_for >= shortest)?;
                Some((entry.is_trusted, std::cmp::Reverse(idle_for), *id, occupant))
            })
            .collect();
        if idle.len() > most {
            idle.select_nth_unstable_by_key(most, |(trusted, idle_for, id, _)| {
                (*trusted, *idle_for, *id)
            });
            idle.truncate(most);
        }
        for (.., id, occupant) in &idle {
            let Some(entry) = self.slots.get_mut(id) else { continue };
            let kind = entry.kind;
            let address = entry.address;
            entry.kind = Kind::Closing { was_reserve: kind == Kind::Reserve };
            self.uncount(kind, address);
            occupant.close();
        }
        idle.len()
    }
}

/// `connections`, or fewer where that would exceed one of `share` files that this process may open.
pub fn within_files(connections: usize, share: usize) -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let files = files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    let most = connections.min((files / share).max(1));
    if most < connections {
        tracing::warn!(
            files,
            wanted = connections,
            connections = most,
            "Listener takes fewer connections than set: the limit on open files (`ulimit -n`, `LimitNOFILE`) allows no more."
        );
    }
    most
}

/// A connection slot of a listener; freed when dropped.
#[derive(Debug)]
pub struct Slot {
    limiter: Arc<Limiter>,
    id: u64,
    is_reserve: bool,
    is_trusted: AtomicBool,
}

impl Slot {
    /// Sets the connection that holds the slot.
    pub fn occupy(&self, occupant: Weak<dyn Occupant>) {
        if let Some(entry) = self.limiter.table.lock().slots.get_mut(&self.id) {
            entry.occupant = Some(occupant);
        }
    }

    /// Whether it is a slot of the reserve.
    pub fn is_reserve(&self) -> bool {
        self.is_reserve
    }

    /// Whether its listener is nearly full.
    pub fn is_crowded(&self) -> bool {
        self.limiter.is_crowded()
    }

    /// Counts again a connection that got a request to close and had a request in flight.
    pub fn keep(&self) {
        let mut table = self.limiter.table.lock();
        let Some(entry) = table.slots.get_mut(&self.id) else { return };
        let Kind::Closing { was_reserve } = entry.kind else { return };
        let kind = if was_reserve { Kind::Reserve } else { Kind::Regular };
        let address = entry.address;
        entry.kind = kind;
        table.count(kind, address);
        self.limiter.used.store(table.used, Relaxed);
    }

    /// The peer has authenticated: its slot is not counted by address any more, and is closed after
    /// unauthenticated ones. Free after the first time, because each request authenticates.
    pub fn trust(&self) {
        if self.is_trusted.load(Relaxed) {
            return;
        }
        self.is_trusted.store(true, Relaxed);
        let mut table = self.limiter.table.lock();
        let Some(entry) = table.slots.get_mut(&self.id) else { return };
        entry.is_trusted = true;
        let address = entry.address.take();
        if !matches!(entry.kind, Kind::Closing { .. }) {
            table.uncount_address(address);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut table = self.limiter.table.lock();
        if let Some(entry) = table.slots.remove(&self.id) {
            table.uncount(entry.kind, entry.address);
        }
        self.limiter.used.store(table.used, Relaxed);
        drop(table);
        self.limiter.freed.notify_one();
    }
}

/// The address or network that counts as one caller.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests;
