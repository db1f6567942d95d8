//! Limits the log lines of repeated failures: for each function and code, the first failure is
//! logged at once, then at most one in ten seconds, with the number of those left out. Anyone can
//! call a function that fails; without this, each such call would be a log line. Used by
//! `events.rs`; time is passed in.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Pause between two lines of one code.
const PAUSE: Duration = Duration::from_secs(10);

/// The failures of one function by code; there are about twenty codes.
#[derive(Debug, Default)]
pub(crate) struct Repeats(Mutex<HashMap<&'static str, Repeat>>);

#[derive(Debug)]
struct Repeat {
    next_line: Instant,
    left_out: u64,
}

impl Repeats {
    /// Whether to log this failure: if so, returns the number left out since the last line.
    pub(super) fn admit(&self, code: &'static str, now: Instant) -> Option<u64> {
        let mut codes = self.0.lock();
        let repeat = codes.entry(code).or_insert(Repeat { next_line: now, left_out: 0 });
        if now < repeat.next_line {
            repeat.left_out += 1;
            return None;
        }
        repeat.next_line = now + PAUSE;
        Some(std::mem::take(&mut repeat.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_logged_once_in_ten_seconds() {
        let repeats = Repeats::default();
        let start = Instant::now();
        let at = |ms| repeats.admit("FUNCTION_ERROR", start + Duration::from_millis(ms));
        assert_eq!(at(0), Some(0));
        for ms in 1..=276 {
            assert_eq!(at(ms), None);
        }
        assert_eq!(
            repeats.admit("FUNCTION_TIMEOUT", start),
            Some(0),
            "each code has its own limit"
        );
        assert_eq!(at(9_999), None);
        assert_eq!(at(10_000), Some(277));
        assert_eq!(at(10_001), None);
        assert_eq!(at(60_000), Some(1));
    }
}
