//! Memory of this VM: granted when an instance starts, given back when its container is removed.
//!
//! First come, first served: a new request queues after those that wait. Memory that stopping
//! instances will give back counts as coming; what goes beyond that is the shortage that an
//! eviction has to cover. Knows no instances: `runner.rs` requests, `vm.rs` evicts.

use epsilon_api::units::Bytes;
use parking_lot::Mutex;
use std::{collections::VecDeque, sync::Arc};
use tokio::sync::oneshot;

#[derive(Debug)]
pub(crate) struct Budget {
    total: u64,
    ledger: Mutex<Ledger>,
}

#[derive(Debug, Default)]
struct Ledger {
    used: u64,
    /// The part of `used` whose owners are stopping.
    leaving: u64,
    waiting: VecDeque<(u64, oneshot::Sender<Grant>)>,
}

/// Granted memory. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Grant {
    budget: Arc<Budget>,
    bytes: u64,
    leaving: bool,
}

/// The answer to a request for memory.
#[derive(Debug)]
pub(crate) enum Claim {
    Granted(Grant),
    /// Granted when the stopping instances are removed, and `shortage` more bytes are made to
    /// leave.
    Later {
        shortage: u64,
        grant: PendingGrant,
    },
    /// More than the VM's total.
    Never,
}

impl Budget {
    pub(crate) fn new(total: Bytes) -> Arc<Self> {
        Arc::new(Self { total: total.get(), ledger: Mutex::default() })
    }

    pub(crate) fn total(&self) -> Bytes {
        Bytes(self.total)
    }

    pub(crate) fn used(&self) -> Bytes {
        Bytes(self.ledger.lock().used)
    }

    /// How many bytes would have to be evicted to grant this much: 0 when it is free or coming.
    /// Claims nothing.
    pub(crate) fn shortage(&self, bytes: Bytes) -> u64 {
        let ledger = self.ledger.lock();
        let ahead: u64 =
            ledger.waiting.iter().filter(|(_, to)| !to.is_closed()).map(|(bytes, _)| bytes).sum();
        let free = self.total.saturating_sub(ledger.used);
        (ahead + bytes.get()).saturating_sub(free + ledger.leaving)
    }

    /// Requests memory. Dropping the promise of a [`Claim::Later`] withdraws the request.
    pub(crate) fn claim(self: &Arc<Self>, bytes: Bytes) -> Claim {
        let bytes = bytes.get();
        if bytes > self.total {
            return Claim::Never;
        }
        let mut ledger = self.ledger.lock();
        ledger.waiting.retain(|(_, to)| !to.is_closed());
        let ahead: u64 = ledger.waiting.iter().map(|(bytes, _)| bytes).sum();
        let free = self.total.saturating_sub(ledger.used); // adopted grants may exceed a lowered total
        if ahead == 0 && bytes <= free {
            ledger.used += bytes;
            return Claim::Granted(Grant { budget: Arc::clone(self), bytes, leaving: false });
        }
        let (to, from) = oneshot::channel();
        ledger.waiting.push_back((bytes, to));
        let shortage = (ahead + bytes).saturating_sub(free + ledger.leaving);
        Claim::Later {
            shortage,
            grant: PendingGrant { budget: Arc::clone(self), from: Some(from) },
        }
    }

    /// Takes memory only if the same amount again stays free, and no request waits: for what is not
    /// urgent.
    pub(crate) fn claim_spare(self: &Arc<Self>, bytes: Bytes) -> Option<Grant> {
        let bytes = bytes.get();
        let mut ledger = self.ledger.lock();
        let is_wanted = ledger.waiting.iter().any(|(_, to)| !to.is_closed());
        if is_wanted || self.total.saturating_sub(ledger.used) < bytes.saturating_mul(2) {
            return None;
        }
        ledger.used += bytes;
        Some(Grant { budget: Arc::clone(self), bytes, leaving: false })
    }

    /// Takes memory that is in use already (an adopted instance), even beyond the total.
    pub(crate) fn adopt(self: &Arc<Self>, bytes: Bytes) -> Grant {
        self.ledger.lock().used += bytes.get();
        Grant { budget: Arc::clone(self), bytes: bytes.get(), leaving: false }
    }

    fn give_back(self: &Arc<Self>, bytes: u64, leaving: bool) {
        let mut ledger = self.ledger.lock();
        ledger.used -= bytes;
        if leaving {
            ledger.leaving -= bytes;
        }
        drop(ledger);
        self.serve();
    }

    /// Grants waiting requests from what is free.
    fn serve(self: &Arc<Self>) {
        let mut ledger = self.ledger.lock();
        let mut ready = Vec::new();
        while let Some(&(bytes, _)) = ledger.waiting.front() {
            let withdrawn = ledger.waiting.front().is_some_and(|(_, to)| to.is_closed());
            if !withdrawn && ledger.used + bytes > self.total {
                break;
            }
            if let Some((bytes, to)) = ledger.waiting.pop_front().filter(|_| !withdrawn) {
                ledger.used += bytes;
                ready.push((to, Grant { budget: Arc::clone(self), bytes, leaving: false }));
            }
        }
        drop(ledger); // an unclaimed grant is given back right here, and needs the lock
        for (to, grant) in ready {
            drop(to.send(grant));
        }
    }
}

/// Memory that is coming. Dropping it withdraws the request; the requests after it move up.
#[derive(Debug)]
pub(crate) struct PendingGrant {
    budget: Arc<Budget>,
    from: Option<oneshot::Receiver<Grant>>,
}

impl PendingGrant {
    pub(crate) async fn granted(mut self) -> Option<Grant> {
        match self.from.as_mut() {
            Some(from) => from.await.ok(),
            None => None,
        }
    }
}

impl Drop for PendingGrant {
    fn drop(&mut self) {
        drop(self.from.take());
        self.budget.serve();
    }
}

impl Grant {
    /// Its owner is stopping: the memory counts as coming.
    pub(crate) fn mark_leaving(&mut self) {
        if !self.leaving {
            self.leaving = true;
            self.budget.ledger.lock().leaving += self.bytes;
        }
    }

    /// Merges another share of the same owner into this one.
    pub(crate) fn join(&mut self, mut other: Self) {
        if self.leaving {
            other.mark_leaving();
        } else if other.leaving {
            self.mark_leaving();
        }
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes, self.leaving);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(claim: Claim) -> Grant {
        match claim {
            Claim::Granted(grant) => grant,
            other => panic!("{other:?}"),
        }
    }

    impl PendingGrant {
        fn try_recv(&mut self) -> Result<Grant, oneshot::error::TryRecvError> {
            self.from.as_mut().unwrap().try_recv()
        }
    }

    fn later(claim: Claim) -> (u64, PendingGrant) {
        match claim {
            Claim::Later { shortage, grant } => (shortage, grant),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn memory_is_given_back_on_drop() {
        let budget = Budget::new(Bytes(10));
        let a = granted(budget.claim(Bytes(6)));
        let b = granted(budget.claim(Bytes(4)));
        assert_eq!(budget.used(), Bytes(10));
        drop((a, b));
        assert_eq!(budget.used(), Bytes(0));
    }

    #[test]
    fn more_than_total_is_never_granted() {
        assert!(matches!(Budget::new(Bytes(10)).claim(Bytes(11)), Claim::Never));
    }

    #[test]
    fn stopping_instances_count_as_coming() {
        let budget = Budget::new(Bytes(10));
        let mut a = granted(budget.claim(Bytes(6)));
        let _b = granted(budget.claim(Bytes(4)));
        a.mark_leaving();
        let (shortage, mut first) = later(budget.claim(Bytes(6)));
        assert_eq!(shortage, 0);
        let (shortage, mut second) = later(budget.claim(Bytes(3)));
        assert_eq!(shortage, 3, "the first one's share is not counted twice");
        drop(a);
        let _first = first.try_recv().unwrap();
        assert!(second.try_recv().is_err());
    }

    #[test]
    fn adopted_memory_may_exceed_the_total() {
        let budget = Budget::new(Bytes(10));
        let adopted = budget.adopt(Bytes(15));
        let (shortage, mut waits) = later(budget.claim(Bytes(4)));
        assert_eq!(shortage, 4);
        drop(adopted);
        assert!(waits.try_recv().is_ok());
    }

    #[test]
    fn the_shortage_is_known_without_a_claim() {
        let budget = Budget::new(Bytes(10));
        let mut a = granted(budget.claim(Bytes(6)));
        assert_eq!((budget.shortage(Bytes(4)), budget.shortage(Bytes(5))), (0, 1));
        a.mark_leaving();
        assert_eq!(budget.shortage(Bytes(10)), 0);
        let (_, waits) = later(budget.claim(Bytes(8)));
        assert_eq!(budget.shortage(Bytes(3)), 1, "after the waiting claims");
        drop(waits);
        assert_eq!(budget.shortage(Bytes(3)), 0);
        assert_eq!(budget.used(), Bytes(6));
    }

    #[test]
    fn spare_claim_leaves_its_size_free_again() {
        let budget = Budget::new(Bytes(10));
        let a = budget.claim_spare(Bytes(4)).unwrap();
        assert!(budget.claim_spare(Bytes(4)).is_none(), "6 are free, and 8 would have to be");
        let b = granted(budget.claim(Bytes(2)));
        let c = budget.claim_spare(Bytes(2)).unwrap();
        let (_, waits) = later(budget.claim(Bytes(5)));
        assert!(budget.claim_spare(Bytes(1)).is_none(), "a claim waits");
        drop(waits);
        assert!(budget.claim_spare(Bytes(1)).is_some());
        drop((a, b, c));
        assert_eq!(budget.used(), Bytes(0));
    }

    #[test]
    fn two_shares_become_one() {
        let budget = Budget::new(Bytes(10));
        let mut a = granted(budget.claim(Bytes(6)));
        a.join(granted(budget.claim(Bytes(3))));
        assert_eq!(budget.used(), Bytes(9));
        a.mark_leaving();
        let (shortage, _waits) = later(budget.claim(Bytes(10)));
        assert_eq!(shortage, 0, "all of it leaves");
        drop(a);
        let mut a = granted(budget.claim(Bytes(0)));
        a.mark_leaving();
        drop(a);
    }

    #[test]
    fn requests_are_served_in_order() {
        let budget = Budget::new(Bytes(10));
        let a = granted(budget.claim(Bytes(8)));
        let (_, mut big) = later(budget.claim(Bytes(10)));
        let (_, mut small) = later(budget.claim(Bytes(1)));
        drop(a);
        let big = big.try_recv().unwrap();
        assert!(small.try_recv().is_err());
        drop(big);
        assert!(small.try_recv().is_ok());
    }

    #[test]
    fn withdrawn_request_blocks_no_other() {
        let budget = Budget::new(Bytes(10));
        let a = granted(budget.claim(Bytes(8)));
        let (_, big) = later(budget.claim(Bytes(10)));
        let (_, mut small) = later(budget.claim(Bytes(9)));
        drop(big);
        drop(a);
        assert!(small.try_recv().is_ok());
        assert_eq!(budget.used(), Bytes(0));
    }

    #[test]
    fn requests_after_a_withdrawn_one_move_up() {
        let budget = Budget::new(Bytes(10));
        let _a = granted(budget.claim(Bytes(8)));
        let (_, big) = later(budget.claim(Bytes(10)));
        let (_, mut small) = later(budget.claim(Bytes(2)));
        drop(big);
        assert!(small.try_recv().is_ok());
    }
}
