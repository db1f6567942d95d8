//! The time limit of a connection: the moment at which it is closed unless something happens, held
//! in one atomic word that costs a request a few nanoseconds and is checked by the connection's own
//! timer. This replaces a timer per request.
//!
//! ```text
//! open: head ─▶ request: none ─▶ answer: AnswerWithin, else none ─▶ last byte: idle, or the rest of it
//! ```

use super::{AnswerWithin, BusyResponse};
use epsilon_api::body::{CallBody, Holding};
use epsilon_http_server::limiter::Occupant;
use http::Response;
use http_body::Body as _;
use parking_lot::Mutex;
use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Poll, Waker},
    time::{Duration, Instant},
};

/// No limit.
const NEVER: u64 = u64::MAX;
/// How long an answer that is complete in memory may take to be written.
const WRITE: Duration = Duration::from_secs(10);

/// The limit. Written by the connection's own task only.
#[derive(Debug)]
pub(super) struct ConnectionDeadline {
    opened: Instant,
    /// Milliseconds after `opened` at which the connection is closed.
    ends_at_ms: AtomicU64,
    /// Milliseconds after `opened` since when no request is in flight; [`NEVER`] while one is.
    idle_since: AtomicU64,
    close_requested: AtomicBool,
    /// The connection's task, set once it waits.
    task: Mutex<Option<Waker>>,
}

impl Occupant for ConnectionDeadline {
    fn idle_for(&self) -> Option<Duration> {
        let since = self.idle_since.load(Relaxed);
        (since != NEVER).then(|| Duration::from_millis(self.now().saturating_sub(since)))
    }

    fn close(&self) {
        self.close_requested.store(true, SeqCst);
        if let Some(task) = &*self.task.lock() {
            task.wake_by_ref();
        }
    }
}

impl ConnectionDeadline {
    pub(super) fn new(first: Duration) -> Self {
        Self {
            opened: Instant::now(),
            ends_at_ms: AtomicU64::new(millis(first)),
            idle_since: AtomicU64::new(0),
            close_requested: AtomicBool::new(false),
            task: Mutex::default(),
        }
    }

    /// Waits until the limiter asks to close. Cancel-safe. It is polled with each wake of the
    /// connection, so the waker is registered once and later polls read one word: it has to stay in
    /// one task.
    pub(super) async fn close_requested(&self) {
        let mut is_registered = false;
        poll_fn(|cx| {
            if !is_registered {
                *self.task.lock() = Some(cx.waker().clone());
                is_registered = true;
            }
            if !self.close_requested.load(SeqCst) {
                return Poll::Pending;
            }
            self.close_requested.store(false, SeqCst);
            Poll::Ready(())
        })
        .await;
    }

    fn now(&self) -> u64 {
        millis(self.opened.elapsed())
    }

    fn end_within(&self, limit: Duration) -> u64 {
        let ends_at_ms = self.now().saturating_add(millis(limit));
        self.ends_at_ms.store(ends_at_ms, Relaxed);
        ends_at_ms
    }

    /// Remaining time; `None` at the deadline. Without a limit, a long time remains.
    pub(super) fn left(&self) -> Option<Duration> {
        let (ends_at_ms, now) = (self.ends_at_ms.load(Relaxed), self.now());
        (now < ends_at_ms).then(|| Duration::from_millis(ends_at_ms - now))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(NEVER >> 1)
}

/// Marks the connection busy while a request is answered.
#[derive(Debug)]
pub(super) struct RequestGuard {
    deadline: Arc<ConnectionDeadline>,
    /// Limit of idle time after this request.
    after: Duration,
    /// When the answer has to be written, if a limit was set.
    out_at: u64,
}

impl RequestGuard {
    pub(super) fn begin(deadline: &Arc<ConnectionDeadline>, after: Duration) -> Self {
        deadline.ends_at_ms.store(NEVER, Relaxed);
        deadline.idle_since.store(NEVER, Relaxed);
        Self { deadline: Arc::clone(deadline), after, out_at: 0 }
    }

    /// The answer is about to be written.
    pub(super) fn answer(mut self, mut response: Response<CallBody>) -> BusyResponse {
        match response.extensions_mut().remove::<AnswerWithin>() {
            Some(AnswerWithin(limit)) => self.out_at = self.deadline.end_within(limit),
            None if response.body().size_hint().exact().is_some() => {
                self.deadline.end_within(WRITE);
            }
            None => {}
        }
        response.map(|body| Holding { body, held: self })
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        // The last byte may have been handed to a full buffer: the limit for writing the answer
        // still counts.
        let now = self.deadline.now();
        // While the gateway has not read the end of the answer, the connection is not idle.
        let idle_since = if self.out_at > now { self.out_at } else { now };
        self.deadline.idle_since.store(idle_since, Relaxed);
        let idle = now.saturating_add(millis(self.after));
        self.deadline.ends_at_ms.store(idle.max(self.out_at), Relaxed);
    }
}
