//! The state of a connection and since when it has held: two atomic words that cost a call a few
//! nanoseconds, checked from time to time by the connection's own timer. This replaces a timer per
//! request.

use crate::{limiter::Occupant, limits::Limits, pace::PaceLimits};
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// Longest time to write an answer whose body is complete, and time that a streamed answer may take
/// beyond the limit of the work that makes it.
pub const WRITE_SLACK: Duration = Duration::from_secs(10);

/// Waiting for the rest of a head.
const HEAD: u64 = 0;
/// Between two requests.
const IDLE: u64 = 1;
/// From a whole head to the last byte of its answer.
const BUSY: u64 = 2;
/// Opened; no byte received yet.
const FRESH: u64 = 3;

const NO_DEADLINE: u64 = u64::MAX;
/// No write is blocked by the caller.
const NOT_BLOCKED: u64 = u64::MAX;

/// State and deadlines of one connection. Only one task writes at a time: the connection's.
#[derive(Debug)]
pub(crate) struct Activity {
    opened: Instant,
    /// Milliseconds since `opened` at which the state began (0 while busy), times four, plus the
    /// state.
    state: AtomicU64,
    /// Milliseconds since `opened` by which the answer must be written.
    deadline: AtomicU64,
    pace: PaceLimits,
    /// Milliseconds since `opened` at which a write was blocked because the caller does not read;
    /// [`NOT_BLOCKED`] if none is.
    blocked_since: AtomicU64,
    /// Milliseconds for which the caller may still block writes; the rule is that of
    /// `pace.rs`, applied to answers.
    wait_budget: AtomicU64,
    /// See [`Limits::unread_end_timeout`].
    unread_end_timeout: Option<Duration>,
    /// Notified when the slot is needed for another connection.
    close: Notify,
}

impl Occupant for Activity {
    fn idle_for(&self) -> Option<Duration> {
        let word = self.state.load(Relaxed);
        let is_idle =
            matches!(word & 3, IDLE | FRESH) && self.blocked_since.load(Relaxed) == NOT_BLOCKED;
        is_idle.then(|| Duration::from_millis(self.now().saturating_sub(word >> 2)))
    }

    fn close(&self) {
        self.close.notify_one();
    }
}

/// Result of a check of the limits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// No limit exceeded; check again later.
    WithinLimits {
        /// When to check again.
        next_check: Duration,
    },
    /// A limit is exceeded; the text says which.
    Exceeded(&'static str),
}

impl Activity {
    pub(crate) fn new(pace: PaceLimits, unread_end_timeout: Option<Duration>) -> Self {
        Self {
            opened: Instant::now(),
            state: AtomicU64::new(FRESH),
            deadline: AtomicU64::new(NO_DEADLINE),
            pace,
            blocked_since: AtomicU64::new(NOT_BLOCKED),
            wait_budget: AtomicU64::new(millis(pace.wait_budget)),
            unread_end_timeout,
            close: Notify::new(),
        }
    }

    /// Waits until the slot is needed for another connection. Cancel-safe.
    pub(crate) async fn close_requested(&self) {
        self.close.notified().await;
    }

    /// A whole head was received.
    pub(crate) fn begin_request(&self) {
        self.deadline.store(NO_DEADLINE, Relaxed);
        self.enter(BUSY);
    }

    /// The last byte of the answer was handed to hyper.
    pub(crate) fn end_request(&self) {
        self.enter(IDLE);
        if let Some(more) = self.unread_end_timeout {
            let set = Some(self.deadline.load(Relaxed)).filter(|set| *set != NO_DEADLINE);
            let more = self.now().saturating_add(millis(more));
            self.deadline.store(set.map_or(more, |set| set.max(more)), Relaxed);
        }
    }

    /// The connection left HTTP and is busy until it ends.
    pub(crate) fn upgraded(&self) {
        self.enter(BUSY);
    }

    fn now(&self) -> u64 {
        millis(self.opened.elapsed())
    }

    fn enter(&self, state: u64) {
        // The start of the busy state is not needed: an answer has a deadline.
        let since = if state == BUSY { 0 } else { self.now() };
        self.state.store(since << 2 | state, Relaxed);
    }

    fn is(&self, state: u64) -> bool {
        self.state.load(Relaxed) & 3 == state
    }

    /// From a whole head to the last byte of its answer.
    pub(crate) fn is_busy(&self) -> bool {
        self.is(BUSY)
    }

    /// Between two requests.
    pub(crate) fn is_idle(&self) -> bool {
        self.is(IDLE)
    }

    pub(crate) fn answer_within(&self, limit: Duration) {
        self.deadline.store(self.now().saturating_add(millis(limit)), Relaxed);
    }

    /// The answer's body is complete; only writing it remains.
    pub(crate) fn is_whole(&self) {
        if self.deadline.load(Relaxed) == NO_DEADLINE {
            self.answer_within(WRITE_SLACK);
        }
    }

    /// Bytes were received.
    pub(crate) fn read(&self) {
        if self.is(IDLE) {
            self.enter(HEAD);
        } else if self.is(FRESH) {
            self.state.store(HEAD, Relaxed); // timed since the connection was opened
        }
    }

    /// `Some`: the socket took this many bytes. `None`: it took none, because the caller has not
    /// read the ones before. Reads the clock only for a slow caller.
    pub(crate) fn wrote(&self, bytes: Option<u64>) {
        let since = self.blocked_since.load(Relaxed);
        match bytes {
            None if since == NOT_BLOCKED => self.blocked_since.store(self.now(), Relaxed),
            Some(bytes) if since != NOT_BLOCKED => {
                let left = self.wait_budget.load(Relaxed).saturating_sub(self.now() - since);
                let left = left.saturating_add(millis(self.pace.earned(bytes)));
                self.wait_budget.store(left.min(millis(self.pace.wait_budget)), Relaxed);
                self.blocked_since.store(NOT_BLOCKED, Relaxed);
            }
            None | Some(_) => {}
        }
    }

    /// Whether a limit is exceeded. Called often enough that a connection outlives a limit by at
    /// most one `header_timeout`.
    pub(crate) fn check(&self, limits: &Limits, is_crowded: bool, now: Instant) -> Check {
        let interval = limits.header_timeout.min(limits.idle_timeout);
        let now = millis(now.saturating_duration_since(self.opened));
        let (since, state) = {
            let word = self.state.load(Relaxed);
            (word >> 2, word & 3)
        };
        let blocked_since = self.blocked_since.load(Relaxed);
        let (ends, why) = match state {
            // hyper drops an answer when its last byte is buffered; the socket may still be
            // blocked.
            state if state == BUSY || blocked_since != NOT_BLOCKED => {
                let too_slow = blocked_since.saturating_add(self.wait_budget.load(Relaxed));
                (self.deadline.load(Relaxed).min(too_slow), "the caller does not read its answer")
            }
            IDLE if is_crowded => (
                since + millis(limits.idle_timeout.min(limits.crowded_idle_timeout)),
                "idle while the listener is nearly full",
            ),
            IDLE => (since + millis(limits.idle_timeout), "idle too long"),
            _ => (since + millis(limits.header_timeout), "no complete head in time"),
        };
        if now >= ends {
            return Check::Exceeded(why);
        }
        Check::WithinLimits { next_check: Duration::from_millis(ends - now).min(interval) }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX >> 2)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::limiter::Exempt;

    fn limits() -> Limits {
        Limits {
            max_connections: 1,
            max_per_address: 1,
            exempt: Exempt::none(),
            max_header: 8192,
            max_headers: 8,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            pace: PACE,
            half_close_timeout: Some(Duration::from_secs(10)),
            has_reserve: false,
            counts_tunnels: true,
            crowded_idle_timeout: Duration::from_secs(5),
            unread_end_timeout: None,
        }
    }
    const PACE: PaceLimits = PaceLimits { wait_budget: Duration::from_secs(20), rate: 1024 };

    /// The result of a check this many seconds after the connection was opened.
    fn at(activity: &Activity, seconds: u64) -> Check {
        activity.check(&limits(), false, activity.opened + Duration::from_secs(seconds))
    }

    pub(crate) fn is_over(activity: &Activity, seconds: u64) -> bool {
        matches!(at(activity, seconds), Check::Exceeded(_))
    }

    #[test]
    fn a_silent_connection_gets_no_longer_than_a_head() {
        let activity = Activity::new(PACE, None);
        assert!(!is_over(&activity, 9) && is_over(&activity, 11));
    }

    #[test]
    fn an_idle_connection_stays_longer_until_its_next_byte() {
        let activity = Activity::new(PACE, None);
        activity.enter(IDLE);
        assert!(!is_over(&activity, 70) && is_over(&activity, 76));
        activity.read();
        assert!(is_over(&activity, 11));
    }

    #[test]
    fn only_idle_connections_close_soon_when_crowded() {
        let crowded = |activity: &Activity, seconds| {
            let now = activity.opened + Duration::from_secs(seconds);
            matches!(activity.check(&limits(), true, now), Check::Exceeded(_))
        };
        let activity = Activity::new(PACE, None);
        assert!(!crowded(&activity, 9), "it may be about to send its first request");
        activity.enter(IDLE);
        assert!(!crowded(&activity, 4) && crowded(&activity, 6));
        activity.enter(BUSY);
        assert!(!crowded(&activity, 1_000_000));
    }

    #[test]
    fn idle_is_who_has_nothing_under_way() {
        let activity = Activity::new(PACE, None);
        assert!(activity.idle_for().is_some(), "nothing was received yet");
        activity.read();
        assert!(activity.idle_for().is_none(), "a head is being received");
        activity.enter(BUSY);
        assert!(activity.idle_for().is_none());
        activity.enter(IDLE);
        assert!(activity.idle_for().is_some());
        activity.wrote(None);
        assert!(activity.idle_for().is_none(), "the end of an answer is being written");
        activity.wrote(Some(1));
        activity.upgraded();
        assert!(activity.idle_for().is_none());
    }

    #[test]
    fn the_first_byte_does_not_extend_the_header_timeout() {
        let activity = Activity::new(PACE, None);
        activity.read();
        assert!(!is_over(&activity, 9) && is_over(&activity, 11));
    }

    #[test]
    fn only_a_call_with_a_deadline_is_cut() {
        let activity = Activity::new(PACE, None);
        activity.enter(BUSY);
        assert!(!is_over(&activity, 1_000_000));
        activity.answer_within(Duration::from_secs(100));
        assert!(!is_over(&activity, 99) && is_over(&activity, 101));
    }

    #[test]
    fn an_unread_answer_keeps_the_deadline_of_its_call() {
        let activity = Activity::new(PACE, None);
        activity.answer_within(Duration::from_secs(100));
        activity.enter(IDLE);
        activity.blocked_since.store(90_000, Relaxed);
        assert!(!is_over(&activity, 99) && is_over(&activity, 101));
    }

    #[test]
    fn a_caller_that_stops_reading_is_cut_early() {
        let activity = Activity::new(PACE, None);
        activity.enter(BUSY);
        activity.answer_within(Duration::from_secs(100));
        activity.wrote(Some(9));
        assert!(!is_over(&activity, 90), "it reads as fast as there is something to read");
        activity.wrote(None);
        assert!(!is_over(&activity, 19) && is_over(&activity, 21));
        activity.wrote(None);
        assert!(is_over(&activity, 21), "a second attempt changes nothing");
        activity.wrote(Some(1));
        assert!(!is_over(&activity, 90), "it reads again");
    }

    #[test]
    fn slow_reading_uses_up_the_time_budget() {
        let activity = Activity::new(PACE, None);
        activity.enter(BUSY);
        for (waited, bytes, left) in [(15, 1, 5), (4, 1024, 2), (0, 10 << 10, 12), (9, 1 << 20, 20)]
        {
            // As if the write had been blocked since then.
            activity.wait_budget.fetch_sub(waited * 1000, Relaxed);
            activity.blocked_since.store(activity.now(), Relaxed);
            activity.wrote(Some(bytes));
            let seen = activity.wait_budget.load(Relaxed);
            assert!(left * 1000 - seen <= 100, "{bytes} bytes after {waited} s: {seen} ms left");
        }
    }

    /// The gateway that reads a member's answer may pass it on to a slow caller.
    #[test]
    fn the_end_of_an_answer_may_stay_unread_beyond_its_deadline() {
        for (deadline, fine, over) in [(Some(5), 59, 61), (Some(100), 99, 101), (None, 59, 61)] {
            let activity = Activity::new(PaceLimits::NONE, Some(Duration::from_secs(60)));
            activity.begin_request();
            activity.wrote(None);
            assert!(!is_over(&activity, 1_000_000));
            if let Some(deadline) = deadline {
                activity.answer_within(Duration::from_secs(deadline));
                assert!(is_over(&activity, deadline + 1), "it has not ended");
            }
            activity.end_request();
            assert!(!is_over(&activity, fine) && is_over(&activity, over), "{deadline:?}");
        }
    }

    #[test]
    fn the_timer_looks_again_in_time() {
        let activity = Activity::new(PACE, None);
        activity.enter(IDLE);
        assert_eq!(at(&activity, 0), Check::WithinLimits { next_check: limits().header_timeout });
    }
}
