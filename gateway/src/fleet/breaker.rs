//! A circuit breaker for each function on each VM: a function that cannot be started on one VM (its
//! image cannot be pulled there, or the engine fails to run it) is sent to other VMs, while the
//! VM's other functions are not affected. Counts failures of the platform only, not errors of the
//! function.
//!
//! ```text
//! closed ── `failures` in a row within `window` ──▶ open ── after `pause` ──▶ half open: one trial call
//!    ▲                                               ▲                             │ failed, or not answered
//!    └────────────── answered ───────────────────────┴─────────────────────────────┘
//! ```
//! An open breaker only changes the placement and refuses nothing: if it is open on all VMs, calls
//! are placed as if there were none. Only functions that failed have an entry, at most
//! [`MAX_ENTRIES`] per VM; on a VM without failures a call costs one atomic read.

use super::view::VersionKey;
use parking_lot::Mutex;
use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};
use tokio::time::Instant;

/// Most entries per VM. A VM on which more functions fail at once is faulty itself, and `health.rs`
/// takes it out.
const MAX_ENTRIES: usize = 256;

/// When a breaker opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Number of consecutive failures that open a breaker …
    pub(crate) failures: u32,
    /// … if all of them are within this time.
    pub(crate) window: Duration,
    /// How long a breaker stays open before a trial call.
    pub(crate) pause: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        let ten = Duration::from_secs(10);
        Self { failures: 3, window: ten, pause: ten }
    }
}

/// The breakers of one VM.
#[derive(Debug)]
pub(crate) struct Breakers {
    policy: Policy,
    /// Number of entries; read by every call.
    count: AtomicUsize,
    entries: Mutex<Vec<Entry>>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    version: VersionKey,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { failures: u32, since: Instant },
    Open { until: Instant },
}

impl Breakers {
    pub(crate) fn new(policy: Policy) -> Self {
        Self { policy, count: AtomicUsize::new(0), entries: Mutex::default() }
    }

    /// Whether calls of this version should go to other VMs.
    pub(crate) fn is_open(&self, version: VersionKey, now: Instant) -> bool {
        self.count.load(Relaxed) > 0
            && self.entries.lock().iter().any(|entry| {
                entry.version == version
                    && matches!(entry.state, State::Open { until } if now < until)
            })
    }

    /// A call of this version is sent there. If it is the trial call, the breaker stays open for
    /// all others.
    pub(crate) fn begins(&self, version: VersionKey, now: Instant) {
        self.change(version, |state, policy| match state {
            Some(State::Open { until }) if now >= until => {
                Some(State::Open { until: now + policy.pause })
            }
            other => other,
        });
    }

    /// The VM answered: with the function's answer or the function's error.
    pub(crate) fn answered(&self, version: VersionKey) {
        self.change(version, |_, _| None);
    }

    /// The platform failed. Returns whether that opened the breaker.
    pub(crate) fn failed(&self, version: VersionKey, now: Instant) -> bool {
        let mut entries = self.entries.lock();
        let found = entries.iter().position(|entry| entry.version == version);
        let before = found.map(|at| entries[at].state);
        let after = match before {
            Some(State::Open { .. }) => State::Open { until: now + self.policy.pause },
            Some(State::Closed { failures, since }) if now < since + self.policy.window => {
                self.counted(failures + 1, since, now)
            }
            Some(State::Closed { .. }) | None => self.counted(1, now, now),
        };
        match found {
            Some(at) => entries[at].state = after,
            None => {
                if entries.len() == MAX_ENTRIES {
                    forget_one(&mut entries);
                }
                entries.push(Entry { version, state: after });
                self.count.store(entries.len(), Relaxed);
            }
        }
        let is_open = |state| matches!(state, State::Open { .. });
        is_open(after) && !before.is_some_and(is_open)
    }

    fn counted(&self, failures: u32, since: Instant, now: Instant) -> State {
        if failures >= self.policy.failures {
            return State::Open { until: now + self.policy.pause };
        }
        State::Closed { failures, since }
    }

    fn change(
        &self,
        version: VersionKey,
        step: impl FnOnce(Option<State>, &Policy) -> Option<State>,
    ) {
        if self.count.load(Relaxed) == 0 {
            return;
        }
        let mut entries = self.entries.lock();
        let Some(at) = entries.iter().position(|entry| entry.version == version) else { return };
        match step(Some(entries[at].state), &self.policy) {
            Some(state) => entries[at].state = state,
            None => {
                entries.swap_remove(at);
                self.count.store(entries.len(), Relaxed);
            }
        }
    }
}

/// Removes the entry that would expire first.
fn forget_one(entries: &mut Vec<Entry>) {
    let age = |entry: &Entry| match entry.state {
        State::Closed { since, .. } => (false, since),
        State::Open { until } => (true, until),
    };
    let oldest = entries.iter().enumerate().min_by_key(|(_, entry)| age(entry)).map(|(at, _)| at);
    if let Some(at) = oldest {
        entries.swap_remove(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    const POLICY: Policy =
        Policy { failures: 3, window: Duration::from_secs(10), pause: Duration::from_secs(5) };

    fn key(function: &str) -> VersionKey {
        VersionKey::of_version(&testing::version(function, 1))
    }

    /// Events of `pay`, with their seconds: `f`ailed, `a`nswered, `b`egins => whether the breaker
    /// is open at the end.
    macro_rules! stories {
        ($($name:ident: $($at:literal $what:ident),*; at $end:literal => $open:expr;)*) => {$(
            #[test]
            fn $name() {
                let breakers = Breakers::new(POLICY);
                let start = Instant::now();
                let at = |seconds| start + Duration::from_secs(seconds);
                $(match stringify!($what) {
                    "f" => { breakers.failed(key("pay"), at($at)); }
                    "a" => breakers.answered(key("pay")),
                    _ => breakers.begins(key("pay"), at($at)),
                })*
                assert_eq!(breakers.is_open(key("pay"), at($end)), $open);
                assert!(!breakers.is_open(key("ship"), at($end)), "other functions are not affected");
            }
        )*};
    }

    stories! {
        two_failures_open_nothing: 0 f, 1 f; at 1 => false;
        three_in_a_row_do: 0 f, 1 f, 2 f; at 6 => true;
        until_the_pause_is_over: 0 f, 1 f, 2 f; at 7 => false;
        an_answer_begins_anew: 0 f, 1 f, 2 a, 3 f, 4 f; at 4 => false;
        failures_far_apart_are_no_row: 0 f, 9 f, 10 f; at 10 => false;
        one_call_tries_and_the_others_stay_away: 0 f, 1 f, 2 f, 7 b; at 7 => true;
        an_unanswered_trial_is_repeated: 0 f, 1 f, 2 f, 7 b; at 12 => false;
        a_trial_that_fails_opens_it_again: 0 f, 1 f, 2 f, 7 b, 8 f; at 12 => true;
        a_trial_that_succeeds_closes_it: 0 f, 1 f, 2 f, 7 b, 8 a, 9 f; at 9 => false;
        a_call_before_its_time_changes_nothing: 0 f, 1 f, 2 f, 5 b; at 7 => false;
    }

    #[test]
    fn opening_is_reported_once() {
        let breakers = Breakers::new(POLICY);
        let now = Instant::now();
        let opened: Vec<bool> = (0..5).map(|_| breakers.failed(key("pay"), now)).collect();
        assert_eq!(opened, [false, false, true, false, false]);
    }

    #[test]
    fn breakers_of_one_vm_are_bounded() {
        let breakers = Breakers::new(POLICY);
        let now = Instant::now();
        for _ in 0..3 {
            breakers.failed(key("pay"), now);
        }
        for n in 0..10_000 {
            breakers.failed(key(&format!("f{n}")), now);
        }
        assert_eq!(breakers.entries.lock().len(), MAX_ENTRIES);
        assert!(breakers.is_open(key("pay"), now), "open breakers are evicted last");
        breakers.answered(key("pay"));
        assert!(!breakers.is_open(key("pay"), now));
    }
}
