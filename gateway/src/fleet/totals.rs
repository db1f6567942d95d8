//! Calls in flight and weights summed over the VMs that take calls: the mean that bounded loads
//! compare with. Cached for some milliseconds, because every call needs it.

use crate::fleet::Member;
use crate::fleet::health::Standing;
use epsilon_placement::bounded_load::Balance;
use epsilon_placement::bounded_load::Totals;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::Instant;

/// Maximum age of the totals over the fleet. A call changes them by one; adding up 200 VMs takes
/// some microseconds.
pub(crate) const MAX_TOTALS_AGE: Duration = Duration::from_millis(10);

/// Totals over the VMs that take calls, recomputed by a call when they are older than
/// [`MAX_TOTALS_AGE`].
#[derive(Debug)]
pub(crate) struct FleetTotals {
    made: Instant,
    /// When to recompute, in microseconds since `made`.
    pub(crate) due: AtomicU64,
    calls: AtomicU64,
    shares: AtomicU64,
    vms: AtomicU32,
}

impl FleetTotals {
    pub(crate) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            made: Instant::now(),
            due: zero(),
            calls: zero(),
            shares: zero(),
            vms: AtomicU32::new(0),
        }
    }

    /// The totals, at most [`MAX_TOTALS_AGE`] old. Of several concurrent callers, one recomputes
    /// them.
    pub(crate) fn fresh(&self, members: &[Arc<Member>], balance: &Balance, now: Instant) -> Totals {
        let passed = now.saturating_duration_since(self.made).as_micros() as u64;
        let due = self.due.load(Relaxed);
        let next = passed + MAX_TOTALS_AGE.as_micros() as u64;
        if passed >= due && self.due.compare_exchange(due, next, Relaxed, Relaxed).is_ok() {
            let mut totals = Totals::default();
            let takes = |member: &&Arc<Member>| {
                member.takes_calls() && !matches!(member.standing(), Standing::Out(_))
            };
            for member in members.iter().filter(takes) {
                let cpu = member.view().cpu;
                let age = member.age(now);
                member.load.add_to_totals(balance, member.weight, cpu, age, &mut totals);
            }
            self.calls.store(totals.calls, Relaxed);
            self.shares.store(totals.shares, Relaxed);
            self.vms.store(totals.vms, Relaxed);
        }
        Totals {
            calls: self.calls.load(Relaxed),
            shares: self.shares.load(Relaxed),
            vms: self.vms.load(Relaxed),
        }
    }
}
