//! Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, arXiv 1608.01350;
//! HAProxy's `hash-balance-factor`): how many calls a VM may carry before a function's next one
//! goes to the next VM. Arithmetic only.
//!
//! ```text
//! bound(VM) = max(floor(VM), ⌈c · (calls of all + 1) · share(VM) / shares of all⌉)
//! ```
//! Without the floor, two concurrent calls would exceed the bound of an idle fleet (1.5 · 2 / 10
//! VMs → 1 each) and start a second instance on a second VM while the first has idle CPUs. So calls
//! are balanced only once a VM is busy: beyond [`Balance::calls_per_core`] calls for each of its
//! CPUs.
//!
//! A new VM has no warm instances and maybe no images: its share and its floor grow over
//! [`Balance::slow_start`].

use std::time::Duration;

/// Share of a new VM at the start, in thousandths of its full share.
const FIRST_PERMILLE: u32 = 100;
/// The full share.
const WHOLE_PERMILLE: u32 = 1000;

/// Calls for each CPU of a VM below which functions are not spread, however little the other VMs
/// carry: two concurrent calls do not start a function on a second idle VM.
pub const CALLS_PER_CORE: f64 = 2.0;

/// How calls are balanced over VMs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Balance {
    /// `c`: how many times its fair share a VM may carry. Greater than 1.
    pub factor: f64,
    /// Calls for each CPU below which a VM is never too loaded.
    pub calls_per_core: f64,
    /// How long a new VM gets less than its full share.
    pub slow_start: Duration,
}

/// Sums over all VMs that take calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Calls in flight on them.
    pub calls: u64,
    /// Sum of their [`Balance::share`]s.
    pub shares: u64,
    /// Number of VMs.
    pub vms: u32,
}

impl Balance {
    /// The share of a VM of this weight, in thousandths of a weight unit, at this age.
    pub fn share(&self, weight: u32, age: Duration) -> u32 {
        weight.saturating_mul(self.ramp(age))
    }

    /// Calls that a VM with this many thousandths of a CPU may carry regardless of the other VMs.
    pub fn floor(&self, millicores: u32, age: Duration) -> u32 {
        let cores = f64::from(millicores.max(1000)) / 1000.0;
        let ramp = f64::from(self.ramp(age)) / f64::from(WHOLE_PERMILLE);
        (cores * self.calls_per_core * ramp).max(1.0) as u32
    }

    /// Calls that a VM may carry now.
    pub fn bound(&self, share: u32, floor: u32, totals: Totals) -> u32 {
        if totals.shares == 0 {
            return floor;
        }
        // Multiplied before dividing, so that exact quotients are not rounded up.
        let fair = self.factor * (totals.calls + 1) as f64 * f64::from(share);
        let bound = (fair / totals.shares as f64).ceil();
        floor.max(bound as u32)
    }

    fn ramp(&self, age: Duration) -> u32 {
        if age >= self.slow_start {
            return WHOLE_PERMILLE;
        }
        let grown = f64::from(WHOLE_PERMILLE - FIRST_PERMILLE);
        FIRST_PERMILLE + (grown * age.as_secs_f64() / self.slow_start.as_secs_f64()) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BALANCE: Balance =
        Balance { factor: 1.5, calls_per_core: 2.0, slow_start: Duration::from_secs(30) };
    const OLD: Duration = Duration::from_secs(3600);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// `calls` in a fleet of these weights with four cores each => the bound of the first VM.
    macro_rules! bounds {
        ($($name:ident: $calls:expr, $weights:expr => $want:expr;)*) => {$(
            #[test]
            fn $name() {
                let weights: &[u32] = &$weights;
                let shares = weights.iter().map(|w| u64::from(BALANCE.share(*w, OLD))).sum();
                let totals = Totals { calls: $calls, shares, vms: weights.len() as u32 };
                let floor = BALANCE.floor(4000, OLD);
                assert_eq!(BALANCE.bound(BALANCE.share(weights[0], OLD), floor, totals), $want);
            }
        )*};
    }

    bounds! {
        an_idle_fleet_has_the_floor: 0, [16; 10] => 8;
        two_calls_at_once_stay_together: 1, [16; 10] => 8;
        the_floor_holds_until_the_share_is_larger: 52, [16; 10] => 8;
        then_the_share_counts: 53, [16; 10] => 9;
        what_comes_out_even_is_not_rounded_up: 59, [16; 10] => 9;
        anything_more_is: 60, [16; 10] => 10;
        a_vm_of_twice_the_size_carries_twice: 119, [32, 16, 16] => 90;
        one_vm_carries_everything: 1000, [16] => 1502;
        no_vm_is_no_division_by_zero: 5, [0] => 8;
    }

    #[test]
    fn a_new_vm_grows_into_its_share() {
        let at = |age| (BALANCE.share(16, age), BALANCE.floor(8000, age));
        assert_eq!(
            [at(s(0)), at(s(10)), at(s(15)), at(s(30)), at(OLD)],
            [(1600, 1), (6400, 6), (8800, 8), (16_000, 16), (16_000, 16)]
        );
        let at_once = Balance { slow_start: Duration::ZERO, ..BALANCE };
        assert_eq!(at_once.share(16, Duration::ZERO), 16_000);
    }

    #[test]
    fn a_vm_without_reported_cpus_has_one() {
        assert_eq!((BALANCE.floor(0, OLD), BALANCE.floor(500, OLD)), (2, 2));
    }

    proptest! {
        /// Whatever the sizes, at least one VM is below its bound: balancing never leaves a call
        /// without a VM.
        #[test]
        fn not_all_vms_are_at_their_bounds(loads in prop::collection::vec((1_u32..300, 0_u32..1000), 1..50)) {
            let shares = loads.iter().map(|(weight, _)| u64::from(BALANCE.share(*weight, OLD))).sum();
            let calls = loads.iter().map(|(_, load)| u64::from(*load)).sum();
            let totals = Totals { calls, shares, vms: loads.len() as u32 };
            let has_room = |(weight, load): &(u32, u32)| {
                *load < BALANCE.bound(BALANCE.share(*weight, OLD), 1, totals)
            };
            prop_assert!(loads.iter().any(has_room));
        }
    }
}
