//! A steady clock that starts from the wall clock and is not moved when the wall clock is set.
//! Gateways date their tokens by it and send its time to members; members follow the gateways'
//! time. A machine whose wall clock is set therefore loses no call.
//!
//! It may follow the wall clock in small steps ([`Clock::approach`]), each smaller than the clock
//! skew that a token allows: a machine that started with a wrong clock is right again some time
//! after it was corrected.

use jiff::{SignedDuration, Timestamp};
use std::{
    sync::atomic::{AtomicI64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// The clock. Reading it costs one atomic load and one read of the machine's monotonic clock.
#[derive(Debug)]
pub struct Clock {
    began: Instant,
    then: Timestamp,
    /// Milliseconds by which it was moved since its start.
    moved: AtomicI64,
}

impl Clock {
    /// Starts at `now`.
    pub fn start(now: Timestamp) -> Self {
        Self { began: Instant::now(), then: now, moved: AtomicI64::new(0) }
    }

    /// The current time of this clock.
    pub fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.began.elapsed()).unwrap_or_default();
        let moved = SignedDuration::from_millis(self.moved.load(Relaxed));
        self.then.saturating_add(passed.saturating_add(moved)).unwrap_or(self.then)
    }

    /// How far `other` is ahead of this clock.
    pub fn lag_to(&self, other: Timestamp) -> SignedDuration {
        other.duration_since(self.now())
    }

    /// Sets the clock to `now`.
    pub fn set(&self, now: Timestamp) {
        self.move_by(self.lag_to(now));
    }

    /// Moves the clock towards `now` by at most `step`.
    pub fn approach(&self, now: Timestamp, step: Duration) {
        let step = SignedDuration::try_from(step).unwrap_or(SignedDuration::MAX);
        self.move_by(self.lag_to(now).clamp(-step, step));
    }

    fn move_by(&self, by: SignedDuration) {
        self.moved.fetch_add(i64::try_from(by.as_millis()).unwrap_or(0), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The clock's own steps are milliseconds, and the test takes some time.
    fn is_about(clock: &Clock, want: Timestamp) -> bool {
        clock.lag_to(want).abs() < SignedDuration::from_secs(1)
    }

    #[test]
    fn it_continues_from_where_it_was_set() {
        let hour = SignedDuration::from_hours(1);
        let start = Timestamp::from_second(1_800_000_000).unwrap();
        let clock = Clock::start(start);
        assert!(is_about(&clock, start));
        clock.set(start + hour);
        assert!(is_about(&clock, start + hour));
        clock.set(start - hour);
        assert!(is_about(&clock, start - hour));
        clock.set(Timestamp::MIN);
        clock.set(Timestamp::MAX);
        clock.set(start);
        assert!(is_about(&clock, start), "no time of day breaks it");
    }

    #[test]
    fn approach_moves_in_small_steps_and_stops_at_target() {
        let start = Timestamp::from_second(1_800_000_000).unwrap();
        let seconds = SignedDuration::from_secs;
        let (clock, step) = (Clock::start(start), Duration::from_secs(2));
        for ahead in [5, -5] {
            clock.set(start);
            let wall = start + seconds(ahead);
            let seen = [2, 4, 5, 5].map(|moved| {
                clock.approach(wall, step);
                is_about(&clock, start + seconds(moved * ahead.signum()))
            });
            assert_eq!(seen, [true; 4], "{ahead}");
        }
    }
}
