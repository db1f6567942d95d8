//! The budget for retries: a call that failed on one VM may be tried on another only while that is
//! rare. When everything fails at once, retries would double the load of a fleet that is already
//! down.
//!
//! A token bucket like Finagle's `RetryBudget` (github.com/twitter/finagle, `RetryBudget.scala`):
//! each call adds a fraction of a token ([`Policy::percent`]), time adds a few more, so that a
//! gateway with little traffic can retry at all; each retry takes one; tokens expire after
//! [`TOKEN_TTL`]. Envoy's `retry_budget` (20 % of the active requests, at least 3) has the same
//! purpose.
//!
//! A VM that *refuses* (no room) costs no budget: it executed nothing, answers within a
//! millisecond, and the number of attempts is bounded. The caller passes the time in; a call costs
//! one atomic operation, and only a retry takes the lock.

use parking_lot::Mutex;
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};
use tokio::time::Instant;

/// How long a token is valid: Finagle's own figure. A VM that dies fails all of its calls at once,
/// and they may use the tokens of this period.
const TOKEN_TTL: Duration = Duration::from_secs(10);

/// How many retries are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Retries for each hundred calls.
    pub(crate) percent: u32,
    /// Retries for each second, however few calls there are.
    pub(crate) per_second: u32,
}

/// When everything fails at once, the fleet gets a fifth more calls and not several times as many; a
/// gateway with few calls can retry, too. A VM without room does not count.
impl Default for Policy {
    fn default() -> Self {
        Self { percent: 20, per_second: 10 }
    }
}

/// The token bucket; one per gateway.
#[derive(Debug)]
pub(crate) struct Budget {
    policy: Policy,
    /// Calls since the last refill.
    calls: AtomicU64,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    refilled_at: Instant,
}

impl Budget {
    /// A bucket that holds what time adds in [`TOKEN_TTL`]: a gateway that has just started can
    /// retry.
    pub(crate) fn new(policy: Policy, now: Instant) -> Self {
        let tokens = f64::from(policy.per_second) * TOKEN_TTL.as_secs_f64();
        let bucket = Mutex::new(Bucket { tokens, refilled_at: now });
        Self { policy, calls: AtomicU64::new(0), bucket }
    }

    /// Counts a call.
    pub(crate) fn call(&self) {
        self.calls.fetch_add(1, Relaxed);
    }

    /// Takes a token for a retry, if there is one.
    pub(crate) fn take(&self, now: Instant) -> bool {
        let mut bucket = self.bucket.lock();
        let passed = now.saturating_duration_since(bucket.refilled_at).as_secs_f64();
        let calls = self.calls.swap(0, Relaxed) as f64;
        let put_in = calls * f64::from(self.policy.percent) / 100.0
            + passed * f64::from(self.policy.per_second);
        // Old tokens and new ones both lose the part that is older than `TOKEN_TTL`.
        let left = (1.0 - passed / TOKEN_TTL.as_secs_f64()).max(0.0);
        let recent = if passed > 0.0 { (TOKEN_TTL.as_secs_f64() / passed).min(1.0) } else { 1.0 };
        bucket.tokens = bucket.tokens * left + put_in * recent;
        bucket.refilled_at = now;
        let granted = bucket.tokens >= 1.0;
        if granted {
            bucket.tokens -= 1.0;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { percent: 20, per_second: 2 };

    /// Takes tokens until there is none left, all at the same moment.
    fn takes(budget: &Budget, now: Instant) -> u32 {
        (0..100_000).take_while(|_| budget.take(now)).count() as u32
    }

    fn calls(budget: &Budget, calls: u32) {
        for _ in 0..calls {
            budget.call();
        }
    }

    #[test]
    fn a_new_gateway_can_retry_a_little() {
        let now = Instant::now();
        assert_eq!(takes(&Budget::new(POLICY, now), now), 20);
    }

    #[test]
    fn one_retry_for_five_calls() {
        let now = Instant::now();
        let budget = Budget::new(POLICY, now);
        takes(&budget, now);
        calls(&budget, 100);
        assert_eq!(takes(&budget, now), 20);
    }

    #[test]
    fn a_failure_of_everything_gets_a_fifth_more_calls() {
        let start = Instant::now();
        let budget = Budget::new(POLICY, start);
        let mut retried = 0;
        // A hundred calls each second for a minute, each of which fails and asks for a retry.
        for n in 0..6000 {
            budget.call();
            retried += u32::from(budget.take(start + Duration::from_millis(n * 10)));
        }
        // A fifth, two each second, and what was there at the start.
        assert!((1200..=1340).contains(&retried), "{retried}");
    }

    #[test]
    fn time_puts_in_a_few_for_a_quiet_gateway() {
        let start = Instant::now();
        let budget = Budget::new(POLICY, start);
        takes(&budget, start);
        assert_eq!(takes(&budget, start + Duration::from_secs(3)), 6);
    }

    #[test]
    fn old_tokens_expire() {
        let start = Instant::now();
        let budget = Budget::new(POLICY, start);
        calls(&budget, 36_000);
        // An hour of ten calls a second: of those, the last ten seconds count.
        assert_eq!(takes(&budget, start + Duration::from_secs(3600)), 20 + 20);
    }

    #[test]
    fn nothing_allowed_is_nothing_granted() {
        let now = Instant::now();
        let budget = Budget::new(Policy { percent: 0, per_second: 0 }, now);
        calls(&budget, 1000);
        assert!(!budget.take(now + Duration::from_secs(5)));
    }
}
