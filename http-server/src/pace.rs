//! How slowly a caller may send its body. Each body has a time budget, `gateway.body_timeout`, that
//! is used up while the platform waits for bytes and earned back by received bytes at
//! [`MIN_BODY_RATE`], up to its initial size. So a pause of `body_timeout` is too long, and
//! so is any body that stays below the rate.
//!
//! Only waiting counts: while a function does not read, or an instance starts, the platform does
//! not wait for the caller. Nor does time count once the answer has begun, because the caller may
//! then be waiting for the function.

use crate::DeadlineTimer;
use std::{
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;

/// Bytes that a caller has to send, or to read, per second of waiting: less than the slowest mobile
/// connection, and enough that a slow caller does not occupy a concurrency slot for long.
pub const MIN_BODY_RATE: u64 = 1 << 10;

/// The limits: how long a peer may keep the platform waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaceLimits {
    /// Longest wait for bytes, and the size of the time budget.
    pub wait_budget: Duration,
    /// Bytes that earn one second.
    pub rate: u64,
}

impl PaceLimits {
    /// With this time budget, at [`MIN_BODY_RATE`].
    pub fn waiting(wait_budget: Duration) -> Self {
        Self { wait_budget, rate: MIN_BODY_RATE }
    }

    /// No limit.
    pub const NONE: Self = Self { wait_budget: Duration::MAX, rate: 1 };

    /// The same rate with a larger time budget.
    #[must_use]
    pub fn times(self, factor: u32) -> Self {
        Self { wait_budget: self.wait_budget.saturating_mul(factor), ..self }
    }

    /// The time that these bytes earn.
    pub fn earned(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.max(1));
        let earned = u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos);
        earned.min(self.wait_budget)
    }
}

/// The time budget of one body. Costs nothing as long as bytes are available when they are read.
#[derive(Debug)]
pub(crate) struct Pace {
    limits: PaceLimits,
    left: Duration,
    /// When the current wait for bytes began.
    waiting: Option<Instant>,
    deadline_timer: DeadlineTimer,
}

impl Pace {
    pub(crate) fn new(limits: PaceLimits) -> Self {
        Self {
            limits,
            left: limits.wait_budget,
            waiting: None,
            deadline_timer: DeadlineTimer::default(),
        }
    }

    /// Called when no byte is available. Ready when the budget is used up.
    pub(crate) fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.waiting.get_or_insert_with(Instant::now);
        self.deadline_timer.poll(cx, since + self.left)
    }

    /// Called when bytes are available.
    pub(crate) fn received(&mut self, bytes: u64) {
        if let Some(since) = self.waiting.take() {
            let left = self.left.saturating_sub(since.elapsed());
            self.left = (left + self.limits.earned(bytes)).min(self.limits.wait_budget);
        }
    }

    /// Called when the body begins to occupy a concurrency slot of its function: its budget shrinks
    /// to what it has earned, plus `grace`.
    pub(crate) fn begin_call(&mut self, received: u64, grace: Duration) {
        self.left = self.left.min(grace + self.limits.earned(received));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::time::{advance, timeout};

    const LIMITS: PaceLimits = PaceLimits { wait_budget: Duration::from_secs(10), rate: 1024 };

    /// Waits this many seconds; returns whether that was too long.
    async fn waits(pace: &mut Pace, seconds: u64) -> bool {
        let wait = poll_fn(|cx| pace.poll_wait(cx));
        timeout(Duration::from_secs(seconds), wait).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_and_rates_of_bodies_are_limited() {
        for (pauses, bytes, too_slow_after) in [
            (9, 10_240, None),      // each pause is earned back
            (11, 1 << 30, Some(1)), // one pause too long, regardless of bytes
            (2, 1024, Some(9)),     // half of the rate
            (1, 1024, None),        // just the rate
            (1, 512, Some(19)),     // half a second short each time
        ] {
            let mut pace = Pace::new(LIMITS);
            let mut seen = None;
            for n in 1..=100 {
                if waits(&mut pace, pauses).await {
                    seen = Some(n);
                    break;
                }
                pace.received(bytes);
            }
            assert_eq!(seen, too_slow_after, "{bytes} bytes each {pauses} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_without_a_waiting_read_does_not_count() {
        let mut pace = Pace::new(LIMITS);
        assert!(!waits(&mut pace, 9).await);
        pace.received(10_240);
        advance(Duration::from_secs(3600)).await;
        assert!(!waits(&mut pace, 9).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_shrinks_the_budget_to_earned_time() {
        let grace = Duration::from_secs(2);
        for (received, longest) in [(0, 2), (3072, 5), (1 << 20, 10)] {
            let mut pace = Pace::new(LIMITS);
            pace.begin_call(received, grace);
            assert!(!waits(&mut pace, longest - 1).await, "{received}");
            assert!(waits(&mut pace, 2).await, "{received}");
        }
    }
}
