//! Rate limit for repeated failures in the operator's log: of one function and one code the first
//! is logged at once, then at most one in ten seconds, with the number of those left out since.
//! Without it, any caller of a function that fails could fill the log. Used by the gateway's
//! `observe/` and the agent's `instance/warnings.rs`; the caller passes the time in.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Pause between two lines of one code.
const PAUSE: Duration = Duration::from_secs(10);

/// The failures of one function by code; there are about twenty codes.
#[derive(Debug, Default)]
pub struct Repeats(Mutex<HashMap<&'static str, Repeat>>);

#[derive(Debug)]
struct Repeat {
    next_line: Instant,
    left_out: u64,
}

impl Repeats {
    /// `Some` if this failure is to be logged: the number of those left out since the last line.
    pub fn admit(&self, code: &'static str, now: Instant) -> Option<u64> {
        let mut codes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
