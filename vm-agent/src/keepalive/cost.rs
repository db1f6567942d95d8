//! The eviction order of idle instances: Greedy-Dual-Size-Frequency as in FaasCache (Fuerst and
//! Sharma, "FaasCache: Keeping Serverless Computing Alive with Greedy-Dual Caching", ASPLOS'21,
//! section 4):
//!
//! ```text
//! priority = clock at its last use + rate of calls × cost of a start ÷ memory
//! ```
//! The instance with the lowest priority is evicted first, and the clock rises to its priority: so
//! even an expensive one is evicted in the end when it is not used. Two changes: a decaying rate
//! replaces the paper's count of calls (a count of last week says nothing about today), and the
//! second, third, … idle instance of a function is worth a half, a third, … of the first. Pure.

use std::time::Duration;

/// After this time, a call counts half.
const HALF_LIFE: Duration = Duration::from_secs(3600);
/// The cost of a start that was never measured: a start from an image.
const UNKNOWN: Duration = Duration::from_millis(250);

/// Calls of the last hours, decaying.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    calls: f64,
    at: Duration,
}

impl Rate {
    /// Adds calls since the last addition.
    pub fn add(&mut self, calls: u64, now: Duration) {
        self.calls = self.at(now) + calls as f64;
        self.at = self.at.max(now);
    }

    /// The value at a moment.
    pub fn at(self, now: Duration) -> f64 {
        let age = now.saturating_sub(self.at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.calls * (-age).exp2()
    }
}

/// Expected cost of a function's next start, from measured ones.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StartCost(Option<Duration>);

impl StartCost {
    /// The value stored by an earlier run.
    pub fn known(cost: Option<Duration>) -> Self {
        Self(cost)
    }

    /// Adds one start. The last four make up most of the value.
    pub fn add(&mut self, took: Duration) {
        self.0 = Some(self.0.map_or(took, |before| (before * 3 + took) / 4));
    }

    /// The measured value, if there is one.
    pub fn measured(self) -> Option<Duration> {
        self.0
    }

    /// The measured value, else a default.
    pub fn get(self) -> Duration {
        self.0.unwrap_or(UNKNOWN)
    }
}

/// The value of an instance per memory: seconds of starts that a GiB saves, per hour or so. `rank`:
/// 1 for the function's instance used last, 2 for the one before it, …
pub fn value(rate: f64, start: Duration, memory: u64, rank: u32) -> f64 {
    let gib = memory.max(1) as f64 / (1_u64 << 30) as f64;
    rate * start.as_secs_f64() / gib / f64::from(rank.max(1))
}

/// The VM's eviction clock: not time, but the highest priority that was evicted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EvictionClock(f64);

impl EvictionClock {
    /// The clock's value, stored at each use of a function.
    pub fn now(self) -> f64 {
        self.0
    }

    /// An instance of this priority was evicted.
    pub fn note_eviction(&mut self, priority: f64) {
        self.0 = self.0.max(priority);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = HALF_LIFE;
    const MIB: u64 = 1 << 20;
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn calls_count_half_after_an_hour() {
        let mut rate = Rate::default();
        rate.add(8, Duration::ZERO);
        assert_eq!(rate.at(HOUR), 4.0);
        rate.add(2, HOUR);
        assert_eq!(rate.at(3 * HOUR), 1.5);
    }

    #[test]
    fn often_dear_and_small_is_worth_more() {
        let base = value(10.0, 100 * MS, 256 * MIB, 1);
        assert!(value(20.0, 100 * MS, 256 * MIB, 1) > base);
        assert!(value(10.0, 900 * MS, 256 * MIB, 1) > base);
        assert!(value(10.0, 100 * MS, 128 * MIB, 1) > base);
        assert!(value(10.0, 100 * MS, 256 * MIB, 2) < base, "a second one of the same");
    }

    #[test]
    fn unused_expensive_instance_is_evicted_in_the_end() {
        let mut clock = EvictionClock::default();
        let dear = clock.now() + value(100.0, 1000 * MS, 256 * MIB, 1);
        let mut rounds = 0;
        loop {
            // A cheap one, used just now.
            let cheap = clock.now() + value(1.0, 100 * MS, 256 * MIB, 1);
            if dear <= cheap {
                break;
            }
            clock.note_eviction(cheap);
            rounds += 1;
        }
        assert!((900..=1001).contains(&rounds), "{rounds}");
    }

    #[test]
    fn a_start_costs_what_the_last_ones_did() {
        let mut cost = StartCost::default();
        assert_eq!(cost.get(), UNKNOWN);
        cost.add(80 * MS);
        assert_eq!(cost.get(), 80 * MS);
        (0..20).for_each(|_| cost.add(8 * MS));
        assert!(cost.get() < 9 * MS, "{cost:?}");
    }
}
