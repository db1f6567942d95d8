//! How long a connection may go on as it is: the moment at which it is over unless something happens, in one
//! atomic word that costs a request a few nanoseconds and is looked at now and then by the connection's own
//! timer. This replaces a timer per request.
//!
//! ```text
//! open: head ─▶ request: none ─▶ answer: AnswerWithin, else none ─▶ last byte handed over: idle, or what is left of it
//! ```

use super::{AnswerWithin, Answered};
use crate::limiter::Occupant;
use epsilon_api::body::{CallBody, Holding};
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

/// No moment at all.
const NEVER: u64 = u64::MAX;
/// How long an answer that is there as a whole may take to be written.
const WRITE: Duration = Duration::from_secs(10);

/// See the module. Written by the connection's own task only.
#[derive(Debug)]
pub(super) struct Patience {
    opened: Instant,
    /// Milliseconds after `opened`.
    over_at: AtomicU64,
    /// The same: since when nothing is under way; [`NEVER`] while something is.
    idle_since: AtomicU64,
    asked_to_close: AtomicBool,
    /// The connection's own task, once it waits.
    task: Mutex<Option<Waker>>,
}

impl Occupant for Patience {
    fn idle_for(&self) -> Option<Duration> {
        let since = self.idle_since.load(Relaxed);
        (since != NEVER).then(|| Duration::from_millis(self.now().saturating_sub(since)))
    }

    fn close(&self) {
        self.asked_to_close.store(true, SeqCst);
        if let Some(task) = &*self.task.lock() {
            task.wake_by_ref();
        }
    }
}

impl Patience {
    pub(super) fn new(first: Duration) -> Self {
        Self {
            opened: Instant::now(),
            over_at: AtomicU64::new(millis(first)),
            idle_since: AtomicU64::new(0),
            asked_to_close: AtomicBool::new(false),
            task: Mutex::default(),
        }
    }

    /// Waits until room is needed for others. Nothing is lost when it is dropped. Polled with each wake of the connection,
    /// so it tells its task once and looks at one word after that: it has to stay in one task.
    pub(super) async fn asked_to_close(&self) {
        let mut is_told = false;
        poll_fn(|cx| {
            if !is_told {
                *self.task.lock() = Some(cx.waker().clone());
                is_told = true;
            }
            if !self.asked_to_close.load(SeqCst) {
                return Poll::Pending;
            }
            self.asked_to_close.store(false, SeqCst);
            Poll::Ready(())
        })
        .await;
    }

    fn now(&self) -> u64 {
        millis(self.opened.elapsed())
    }

    fn end_within(&self, limit: Duration) -> u64 {
        let over_at = self.now().saturating_add(millis(limit));
        self.over_at.store(over_at, Relaxed);
        over_at
    }

    /// What is left; `None` when it is over. Without an end, a long time is left.
    pub(super) fn left(&self) -> Option<Duration> {
        let (over_at, now) = (self.over_at.load(Relaxed), self.now());
        (now < over_at).then(|| Duration::from_millis(over_at - now))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(NEVER >> 1)
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Busy {
    patience: Arc<Patience>,
    /// The silence that is fine after it.
    after: Duration,
    /// When its answer has to be out, where that was said.
    out_at: u64,
}

impl Busy {
    pub(super) fn begin(patience: &Arc<Patience>, after: Duration) -> Self {
        patience.over_at.store(NEVER, Relaxed);
        patience.idle_since.store(NEVER, Relaxed);
        Self { patience: Arc::clone(patience), after, out_at: 0 }
    }

    /// Its answer is about to go out.
    pub(super) fn answer(mut self, mut response: Response<CallBody>) -> Answered {
        match response.extensions_mut().remove::<AnswerWithin>() {
            Some(AnswerWithin(limit)) => self.out_at = self.patience.end_within(limit),
            None if response.body().size_hint().exact().is_some() => {
                self.patience.end_within(WRITE);
            }
            None => {}
        }
        response.map(|body| Holding { body, held: self })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // Its last byte was handed over, perhaps into a full buffer: what it was given to be out still counts.
        let now = self.patience.now();
        // An answer of which the gateway has not read the end yet is no idle connection.
        let idle_since = if self.out_at > now { self.out_at } else { now };
        self.patience.idle_since.store(idle_since, Relaxed);
        let idle = now.saturating_add(millis(self.after));
        self.patience.over_at.store(idle.max(self.out_at), Relaxed);
    }
}
