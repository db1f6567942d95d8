//! The error window of one version of a split: how many of its calls ended recently, and how many
//! failed. The window is pure; around it, a version that fails too often ends its split.

use crate::traffic::metrics::VersionMetrics;
use epsilon_api::{
    error::CALLER_GONE,
    ids::VersionNumber,
    traffic::{AbortRule, Aborted},
};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// Buckets of a window; calls leave the window one bucket at a time.
const BUCKETS: usize = 10;

/// A sliding window of counts. Pure: the caller passes the time in.
#[derive(Debug)]
struct Window {
    /// Duration of one bucket.
    width: Duration,
    began: Instant,
    /// Number of the bucket of the last count, since the start.
    last: u128,
    buckets: [Counts; BUCKETS],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) calls: u64,
    pub(crate) failed: u64,
}

impl Window {
    fn new(length: Duration, now: Instant) -> Self {
        let width = (length / BUCKETS as u32).max(Duration::from_millis(1));
        Self { width, began: now, last: 0, buckets: Default::default() }
    }

    fn note(&mut self, failed: bool, now: Instant) -> Counts {
        self.pass(now);
        let bucket = &mut self.buckets[(self.last % BUCKETS as u128) as usize];
        bucket.calls += 1;
        bucket.failed += u64::from(failed);
        self.sum()
    }

    fn at(&mut self, now: Instant) -> Counts {
        self.pass(now);
        self.sum()
    }

    /// Empties the buckets that have left the window.
    fn pass(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.began).as_nanos();
        let here = (passed / self.width.as_nanos()).max(self.last);
        for gone in (self.last + 1..=here).take(BUCKETS) {
            self.buckets[(gone % BUCKETS as u128) as usize] = Counts::default();
        }
        self.last = here;
    }

    fn sum(&self) -> Counts {
        self.buckets.iter().fold(Counts::default(), |sum, one| Counts {
            calls: sum.calls + one.calls,
            failed: sum.failed + one.failed,
        })
    }
}

/// Switches all calls of a split to the stable version at once, and notifies the task that ends the
/// split.
#[derive(Clone, Debug, Default)]
pub(crate) struct AbortSwitch {
    is_tripped: Arc<AtomicBool>,
    notify: Arc<Notify>,
}

impl AbortSwitch {
    /// A switch that notifies `notify`.
    pub(crate) fn new(notify: &Arc<Notify>) -> Self {
        Self { is_tripped: Arc::default(), notify: Arc::clone(notify) }
    }

    pub(crate) fn is_tripped(&self) -> bool {
        self.is_tripped.load(Ordering::Relaxed)
    }

    fn trip(&self) {
        self.is_tripped.store(true, Ordering::Relaxed);
        self.notify.notify_one();
    }
}

/// The error window of one version, and what happens when it exceeds the limit.
#[derive(Debug)]
pub(crate) struct ErrorWindow {
    version: VersionNumber,
    rule: AbortRule,
    /// None for the stable version: there is no better version to switch to.
    abort_switch: Option<AbortSwitch>,
    window: Mutex<Window>,
    breach: OnceLock<Aborted>,
    metrics: Arc<VersionMetrics>,
}

impl ErrorWindow {
    pub(crate) fn new(
        version: VersionNumber,
        rule: AbortRule,
        abort_switch: Option<AbortSwitch>,
        metrics: Arc<VersionMetrics>,
    ) -> Self {
        let window = Mutex::new(Window::new(rule.window(), Instant::now()));
        Self { version, rule, abort_switch, window, breach: OnceLock::new(), metrics }
    }

    /// Counts a call that ended with this status.
    pub(crate) fn ended(&self, status: u16) {
        if status == CALLER_GONE {
            // A caller that hung up says nothing about the version.
            return;
        }
        let failed = status >= 500;
        self.metrics.ended(failed);
        let Counts { calls, failed } = self.window.lock().note(failed, Instant::now());
        let Some(abort_switch) = &self.abort_switch else { return };
        if self.rule.is_violated_by(failed, calls) && self.breach.get().is_none() {
            let at = Timestamp::now();
            let version = self.version;
            let limit = self.rule.above;
            // Of two calls that end at the same time, one sets the reason.
            let _ = self.breach.set(Aborted { at, version, calls, failed, limit });
            abort_switch.trip();
        }
    }

    /// The calls within the window.
    pub(crate) fn counts(&self) -> Counts {
        self.window.lock().at(Instant::now())
    }

    /// Why the version failed, if it did.
    pub(crate) fn breach(&self) -> Option<&Aborted> {
        self.breach.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{testing, traffic::metrics::TrafficMetrics};
    use epsilon_api::traffic::Rate;
    use prometheus::Registry;

    const SECOND: Duration = Duration::from_secs(1);

    /// Each row: calls as (second, failed), the time of reading => calls and failed calls.
    macro_rules! windows {
        ($($name:ident: $calls:expr, $at:expr => $want:expr;)*) => {$(
            #[tokio::test]
            async fn $name() {
                let start = Instant::now();
                let mut window = Window::new(10 * SECOND, start);
                let calls: &[(u32, bool)] = &$calls;
                for (second, failed) in calls {
                    window.note(*failed, start + *second * SECOND);
                }
                let Counts { calls, failed } = window.at(start + $at * SECOND);
                assert_eq!((calls, failed), $want);
            }
        )*};
    }

    windows! {
        nothing_yet: [], 5 => (0, 0);
        all_are_counted: [(0, false), (3, true), (9, false)], 9 => (3, 1);
        the_first_leave_first: [(0, false), (3, true), (9, false)], 10 => (2, 1);
        then_the_next: [(0, false), (3, true), (9, false)], 13 => (1, 0);
        all_have_left: [(0, false), (3, true), (9, false)], 19 => (0, 0);
        after_a_long_silence: [(0, true), (3, true)], 1_000_000 => (0, 0);
        a_clock_that_stands: [(5, true), (5, true)], 5 => (2, 2);
        a_clock_that_goes_back_counts_on: [(5, true), (1, false)], 5 => (2, 1);
    }

    fn error_window(abort_switch: Option<AbortSwitch>) -> ErrorWindow {
        let metrics = TrafficMetrics::new(&Registry::new()).unwrap();
        let version = testing::version("pay", 4);
        let rule = AbortRule { above: Rate::percent(10), window_ms: 60_000, min_calls: 10 };
        ErrorWindow::new(version.number, rule, abort_switch, metrics.version(&version.id()))
    }

    #[tokio::test]
    async fn a_failing_version_blows_its_fuse_once() {
        let notify = Arc::new(Notify::new());
        let abort_switch = AbortSwitch::default();
        let abort_switch = AbortSwitch { notify: Arc::clone(&notify), ..abort_switch };
        let error_window = error_window(Some(abort_switch.clone()));
        for status in [200, 404, 200, 429, 302, 200, 200, 500, CALLER_GONE] {
            error_window.ended(status);
        }
        assert!(!abort_switch.is_tripped(), "one of eight; errors of callers do not count");
        error_window.ended(502);
        assert!(!abort_switch.is_tripped(), "nine calls are too few");
        error_window.ended(503);
        assert!(abort_switch.is_tripped());
        let breach = error_window.breach().unwrap().clone();
        assert_eq!((breach.version.get(), breach.calls, breach.failed), (4, 10, 3));
        notify.notified().await;
        error_window.ended(500);
        assert_eq!(error_window.breach(), Some(&breach), "the first reason stays");
    }

    #[tokio::test]
    async fn the_stable_version_is_not_judged() {
        let error_window = error_window(None);
        for _ in 0..100 {
            error_window.ended(500);
        }
        assert!(error_window.breach().is_none());
        assert_eq!(error_window.counts(), Counts { calls: 100, failed: 100 });
    }
}
