//! How long a connection may go on as it is: the moment at which it is over unless something happens, in one
//! atomic word that costs a request a few nanoseconds and is looked at now and then by the connection's own
//! timer. This replaces a timer per request.
//!
//! ```text
//! open: head ─▶ request: none ─▶ answer: AnswerWithin, else none ─▶ last byte handed over: idle, or what is left of it
//! ```

use super::{AnswerWithin, Answered};
use epsilon_api::body::{CallBody, Holding};
use http::Response;
use http_body::Body as _;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
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
}

impl Patience {
    pub(super) fn new(first: Duration) -> Self {
        Self { opened: Instant::now(), over_at: AtomicU64::new(millis(first)) }
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
        let idle = self.patience.now().saturating_add(millis(self.after));
        self.patience.over_at.store(idle.max(self.out_at), Relaxed);
    }
}
