//! The state of a connection and since when it has held: two atomic words that cost a call a few
//! nanoseconds, checked from time to time by the connection's own timer. This replaces a timer per
//! request.

use super::Connection;
use crate::{
    call::{WRITE_SLACK, relay::pace::PaceLimits},
    config::connections::ConnectionLimits,
};
use epsilon_api::body::Holding;
use epsilon_fleet_link::{connection::poll_write_coalesced, limiter::Occupant};
use http_body::Body;
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

/// Waiting for the rest of a head.
const HEAD: u64 = 0;
/// Between two requests.
const IDLE: u64 = 1;
/// From a whole head to the last byte of its answer.
const BUSY: u64 = 2;
/// Opened; no byte received yet.
const FRESH: u64 = 3;

/// How long a connection may be idle when its listener is nearly full. It is closed at most
/// `header_timeout` later; when no slot is left at all, `epsilon_fleet_link::limiter` closes idle
/// connections at once.
const CROWDED_IDLE: Duration = Duration::from_secs(5);

const NO_DEADLINE: u64 = u64::MAX;
/// No write is blocked by the caller.
const NOT_BLOCKED: u64 = u64::MAX;

/// State and deadlines of one connection. Only one task writes at a time: the connection's.
#[derive(Debug)]
pub(super) struct Activity {
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
    /// `relay/pace.rs`, applied to answers.
    wait_budget: AtomicU64,
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
pub(super) enum Check {
    /// No limit exceeded; check again later.
    WithinLimits {
        /// When to check again.
        next_check: Duration,
    },
    /// A limit is exceeded; the text says which.
    Exceeded(&'static str),
}

impl Activity {
    pub(super) fn new(pace: PaceLimits) -> Self {
        Self {
            opened: Instant::now(),
            state: AtomicU64::new(FRESH),
            deadline: AtomicU64::new(NO_DEADLINE),
            pace,
            blocked_since: AtomicU64::new(NOT_BLOCKED),
            wait_budget: AtomicU64::new(millis(pace.wait_budget)),
            close: Notify::new(),
        }
    }

    /// Waits until the slot is needed for another connection. Cancel-safe.
    pub(super) async fn close_requested(&self) {
        self.close.notified().await;
    }

    /// The connection left HTTP and is busy until it ends.
    pub(super) fn upgraded(&self) {
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
    pub(super) fn is_busy(&self) -> bool {
        self.is(BUSY)
    }

    /// Between two requests.
    pub(super) fn is_idle(&self) -> bool {
        self.is(IDLE)
    }

    pub(super) fn answer_within(&self, limit: Duration) {
        self.deadline.store(self.now().saturating_add(millis(limit)), Relaxed);
    }

    /// The answer's body is complete; only writing it remains.
    fn is_whole(&self) {
        if self.deadline.load(Relaxed) == NO_DEADLINE {
            self.answer_within(WRITE_SLACK);
        }
    }

    /// Bytes were received.
    fn read(&self) {
        if self.is(IDLE) {
            self.enter(HEAD);
        } else if self.is(FRESH) {
            self.state.store(HEAD, Relaxed); // timed since the connection was opened
        }
    }

    /// `Some`: the socket took this many bytes. `None`: it took none, because the caller has not
    /// read the ones before. Reads the clock only for a slow caller.
    fn wrote(&self, bytes: Option<u64>) {
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
    pub(super) fn check(&self, limits: &ConnectionLimits, is_crowded: bool, now: Instant) -> Check {
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
                since + millis(limits.idle_timeout.min(CROWDED_IDLE)),
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

/// Marks the connection as busy for as long as it lives.
#[derive(Debug)]
pub(super) struct Busy(Arc<Connection>);

impl Busy {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        connection.activity.deadline.store(NO_DEADLINE, Relaxed);
        connection.activity.enter(BUSY);
        Self(connection)
    }

    /// Gives a body of known length a deadline if none was set.
    pub(super) fn until_end_of<B: Body>(self, body: B) -> Holding<B, Self> {
        if body.size_hint().exact().is_some() {
            self.0.activity.is_whole();
        }
        Holding { body, held: self }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.activity.enter(IDLE);
    }
}

/// A socket that reports reads and writes to the connection's activity.
#[derive(Debug)]
pub(super) struct Watched<S> {
    pub(super) stream: S,
    pub(super) connection: Arc<Connection>,
}

impl<S> Watched<S> {
    fn wrote(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &result {
            Poll::Pending => self.connection.activity.wrote(None),
            Poll::Ready(Ok(bytes)) => self.connection.activity.wrote(Some(*bytes as u64)),
            Poll::Ready(Err(_)) => {}
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.connection.activity.read();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = poll_write_coalesced(Pin::new(&mut self.stream), cx, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use epsilon_api::body::{self, BodyError};
    use epsilon_fleet_link::limiter::Exempt;

    fn limits() -> ConnectionLimits {
        ConnectionLimits {
            max_connections: 1,
            max_per_address: 1,
            exempt: Exempt::none(),
            max_header: 8192,
            max_headers: 8,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            pace: PACE,
            half_close_timeout: Duration::from_secs(10),
        }
    }
    const PACE: PaceLimits = PaceLimits { wait_budget: Duration::from_secs(20), rate: 1024 };

    /// The result of a check this many seconds after the connection was opened.
    fn at(activity: &Activity, seconds: u64) -> Check {
        activity.check(&limits(), false, activity.opened + Duration::from_secs(seconds))
    }

    fn is_over(activity: &Activity, seconds: u64) -> bool {
        matches!(at(activity, seconds), Check::Exceeded(_))
    }

    #[test]
    fn a_silent_connection_gets_no_longer_than_a_head() {
        let activity = Activity::new(PACE);
        assert!(!is_over(&activity, 9) && is_over(&activity, 11));
    }

    #[test]
    fn an_idle_connection_stays_longer_until_its_next_byte() {
        let activity = Activity::new(PACE);
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
        let activity = Activity::new(PACE);
        assert!(!crowded(&activity, 9), "it may be about to send its first request");
        activity.enter(IDLE);
        assert!(!crowded(&activity, 4) && crowded(&activity, 6));
        activity.enter(BUSY);
        assert!(!crowded(&activity, 1_000_000));
    }

    #[test]
    fn idle_is_who_has_nothing_under_way() {
        let activity = Activity::new(PACE);
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
        let activity = Activity::new(PACE);
        activity.read();
        assert!(!is_over(&activity, 9) && is_over(&activity, 11));
    }

    #[test]
    fn only_a_call_with_a_deadline_is_cut() {
        let activity = Activity::new(PACE);
        activity.enter(BUSY);
        assert!(!is_over(&activity, 1_000_000));
        activity.answer_within(Duration::from_secs(100));
        assert!(!is_over(&activity, 99) && is_over(&activity, 101));
    }

    #[test]
    fn an_unread_answer_keeps_the_deadline_of_its_call() {
        let activity = Activity::new(PACE);
        activity.answer_within(Duration::from_secs(100));
        activity.enter(IDLE);
        activity.blocked_since.store(90_000, Relaxed);
        assert!(!is_over(&activity, 99) && is_over(&activity, 101));
    }

    #[test]
    fn a_caller_that_stops_reading_is_cut_early() {
        let activity = Activity::new(PACE);
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
        let activity = Activity::new(PACE);
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

    /// Without it, a caller who never reads an answer without a deadline would hold its connection
    /// forever.
    #[test]
    fn a_complete_answer_always_has_a_deadline() {
        let connection = || Arc::new(Connection::for_test("10.0.0.9:1"));
        let (whole, stream, limited) = (connection(), connection(), connection());
        let _whole = Busy::new(Arc::clone(&whole)).until_end_of(body::full("ok"));
        assert!(!is_over(&whole.activity, 8) && is_over(&whole.activity, 12));
        let frames =
            futures_util::stream::pending::<Result<http_body::Frame<bytes::Bytes>, BodyError>>();
        let endless = body::boxed(http_body_util::StreamBody::new(frames));
        let _stream = Busy::new(Arc::clone(&stream)).until_end_of(endless);
        assert!(!is_over(&stream.activity, 1_000_000));
        let busy = Busy::new(Arc::clone(&limited));
        limited.answer_within(Duration::from_secs(100));
        let _limited = busy.until_end_of(body::full("ok"));
        assert!(!is_over(&limited.activity, 99) && is_over(&limited.activity, 101));
    }

    #[test]
    fn the_timer_looks_again_in_time() {
        let activity = Activity::new(PACE);
        activity.enter(IDLE);
        assert_eq!(at(&activity, 0), Check::WithinLimits { next_check: limits().header_timeout });
    }
}
