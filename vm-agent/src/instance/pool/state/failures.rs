//! Failures of a version's instances that are remembered, and the pauses that they cause, so that
//! broken code is not started for each call. Pure.

use crate::container::failure::StartFailure;
use crate::moment::Moment;
use std::time::Duration;

/// How long the first failure of a version's code is remembered; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Pause of a version with live instances after a start that this VM had no capacity for.
const NO_CAPACITY_PAUSE: Duration = Duration::from_millis(500);
/// An instance that ends by itself within this time of being ready counts like one that never was
/// ready.
const EARLY_CRASH: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Failures {
    last: Option<LastFailure>,
    /// No start before, except for a waiting call of a version without an instance.
    no_start_before: Option<Moment>,
    /// Back-off after instances that ended soon after they were ready: no start that no call waits
    /// for before this moment, and the length of the pause.
    crash_backoff: Option<(Moment, Duration)>,
    /// Number of failed starts so far.
    count: u64,
}

#[derive(Debug)]
struct LastFailure {
    failure: StartFailure,
    until: Moment,
    pause: Duration,
}

impl Failures {
    /// A start failed.
    pub(super) fn note(&mut self, failure: &StartFailure, now: Moment) {
        self.count += 1;
        let before = self.last.take().map(|last| (last.until, last.pause));
        let pause = match failure {
            StartFailure::Init(_) => next_pause(before, now),
            StartFailure::NoCapacity(_) | StartFailure::Cancelled => NO_CAPACITY_PAUSE,
        };
        let until = now + pause;
        self.no_start_before = Some(until);
        self.last = Some(LastFailure { failure: failure.clone(), until, pause });
    }

    /// An instance that became ready at this moment ended by itself.
    pub(super) fn note_crash(&mut self, ready_at: Moment, now: Moment) {
        if now < ready_at + EARLY_CRASH {
            // After a good while, earlier crashes count no more.
            let before = self.crash_backoff.filter(|(until, _)| now < *until + LONGEST_PAUSE);
            let pause = next_pause(before, now);
            self.crash_backoff = Some((now + pause, pause));
        }
    }

    /// A start succeeded.
    pub(super) fn note_success(&mut self) {
        self.last = None;
        self.no_start_before = None;
    }

    /// An explicit request for an instance: try again at once.
    pub(super) fn forget(&mut self) {
        self.note_success();
        self.crash_backoff = None;
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn last(&self) -> Option<&StartFailure> {
        self.last.as_ref().map(|last| &last.failure)
    }

    /// The failure of the version's code, while it is remembered.
    pub(super) fn of_code(&self, now: Moment) -> Option<&StartFailure> {
        let last = self.last.as_ref().filter(|last| now < last.until)?;
        matches!(last.failure, StartFailure::Init(_)).then_some(&last.failure)
    }

    pub(super) fn is_remembered(&self, now: Moment) -> bool {
        self.last.as_ref().is_some_and(|last| now < last.until)
    }

    /// Whether starts beside existing instances wait.
    pub(super) fn is_pausing(&self, now: Moment) -> bool {
        self.no_start_before.is_some_and(|then| now < then)
    }

    /// Whether starts that no call waits for wait.
    pub(super) fn is_background_pausing(&self, now: Moment) -> bool {
        self.is_pausing(now) || self.crash_backoff.is_some_and(|(until, _)| now < until)
    }
}

/// The next pause. Failures during the current pause (a burst of starts) count once.
fn next_pause(before: Option<(Moment, Duration)>, now: Moment) -> Duration {
    match before {
        Some((until, pause)) if now < until => pause,
        Some((_, pause)) => (pause * 2).min(LONGEST_PAUSE),
        None => FIRST_PAUSE,
    }
}
