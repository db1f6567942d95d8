//! Rate limit of one function's log: a token bucket for lines and one for bytes, shared by all its
//! instances on this VM. Lines beyond are dropped and counted, so that a flood costs only its
//! author lines. Both losses, this one and that of a full queue, are reported in the function's own
//! log, at most once a second. Pure but for a lock: time is passed in.
//!
//! Checked for each line by `container/output.rs`. Token bucket: RFC 2697 describes the same meter
//! for packets.

use epsilon_api::units::Bytes;
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Lines a second: 500 calls a second with ten lines each. A burst is a fraction of the queue,
/// which all functions quota.
const LINES: f64 = 5000.0;
const LINES_AT_ONCE: f64 = 2000.0;
/// Bytes a second. At this rate the stored log of a function (10 MiB) is replaced every five
/// seconds.
const BYTES: f64 = (2 << 20) as f64;
const BYTES_AT_ONCE: f64 = (8 << 20) as f64;
/// Bytes a second that are read of one container's output, stored or not; beyond, its writes block.
/// Reading costs CPU time of this VM, whatever becomes of the lines.
const READ: f64 = (16 << 20) as f64;
const READ_AT_ONCE: f64 = (4 << 20) as f64;
/// Pause between two reports of lost lines.
const REPORT: Duration = Duration::from_secs(1);

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    left: f64,
    most: f64,
    per_second: f64,
    at: Option<Instant>,
}

impl Bucket {
    const fn new(per_second: f64, most: f64) -> Self {
        Self { left: most, most, per_second, at: None }
    }

    fn fill(&mut self, now: Instant) {
        let passed = self.at.map_or(0.0, |then| now.saturating_duration_since(then).as_secs_f64());
        self.at = Some(now);
        self.left = (self.left + passed * self.per_second).min(self.most);
    }

    /// Time until the balance is no longer negative.
    fn debt(&self) -> Duration {
        Duration::from_secs_f64((-self.left).max(0.0) / self.per_second)
    }
}

/// The rate limit of one function.
#[derive(Debug)]
pub(crate) struct Quota(Mutex<Meter>);

#[derive(Debug)]
struct Meter {
    lines: Bucket,
    bytes: Bucket,
    /// Lines beyond the limit, and lines that found the queue full, since the last report.
    beyond: u64,
    queue_full: u64,
    reported: Option<Instant>,
}

impl Default for Quota {
    fn default() -> Self {
        Self(Mutex::new(Meter {
            lines: Bucket::new(LINES, LINES_AT_ONCE),
            bytes: Bucket::new(BYTES, BYTES_AT_ONCE),
            beyond: 0,
            queue_full: 0,
            reported: None,
        }))
    }
}

impl Quota {
    /// Whether one more line of this many bytes is within the limit; counts it.
    pub(crate) fn admits(&self, bytes: usize, now: Instant) -> bool {
        let mut meter = self.0.lock();
        meter.lines.fill(now);
        meter.bytes.fill(now);
        let size = bytes as f64;
        let fits = meter.lines.left >= 1.0 && meter.bytes.left >= size;
        if fits {
            meter.lines.left -= 1.0;
            meter.bytes.left -= size;
        } else {
            meter.beyond += 1;
        }
        fits
    }

    /// Counts a line within the limit that found the queue full.
    pub(crate) fn queue_was_full(&self) {
        self.0.lock().queue_full += 1;
    }

    /// The report for the function's author; `None` when nothing was lost, or the last report is
    /// less than a second ago.
    pub(crate) fn report(&self, now: Instant) -> Option<String> {
        let mut meter = self.0.lock();
        if meter.beyond + meter.queue_full == 0
            || meter.reported.is_some_and(|then| now < then + REPORT)
        {
            return None;
        }
        meter.reported = Some(now);
        let beyond = std::mem::take(&mut meter.beyond);
        let queue_full = std::mem::take(&mut meter.queue_full);
        Some(match (beyond, queue_full) {
            (0, lines) => {
                format!("{lines} lines were lost: the queue of all logs on this VM was full")
            }
            (lines, 0) => {
                let bytes = Bytes(BYTES as u64);
                format!(
                    "{lines} lines were dropped: a function may log {LINES} lines and {bytes} a second"
                )
            }
            (beyond, full) => format!(
                "{} lines were dropped: the function logged too much, and the queue of all logs on this VM was full",
                beyond + full
            ),
        })
    }

    /// When the next report is due; `None` when nothing was lost.
    pub(crate) fn next_report(&self) -> Option<Instant> {
        let meter = self.0.lock();
        let has_losses = meter.beyond + meter.queue_full > 0;
        has_losses.then(|| meter.reported.map_or_else(Instant::now, |then| then + REPORT))
    }
}

/// Limits how fast one container's output is read.
#[derive(Debug)]
pub(crate) struct ReadRate(Bucket);

impl ReadRate {
    pub(crate) const fn new() -> Self {
        Self(Bucket::new(READ, READ_AT_ONCE))
    }

    /// Counts bytes that were read; returns how long to wait before the next read. Waits shorter
    /// than a timer's step are added up.
    pub(crate) fn read(&mut self, bytes: usize, now: Instant) -> Option<Duration> {
        self.0.fill(now);
        self.0.left -= bytes as f64;
        Some(self.0.debt()).filter(|debt| *debt >= Duration::from_millis(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_passes_and_flood_is_cut_to_its_rate() {
        let quota = Quota::default();
        let start = Instant::now();
        let admitted = (0..20_000).filter(|_| quota.admits(80, start)).count();
        assert_eq!(admitted as f64, LINES_AT_ONCE);
        let later = start + Duration::from_millis(100);
        let admitted = (0..20_000).filter(|_| quota.admits(80, later)).count();
        assert_eq!(admitted as f64, LINES / 10.0);
        let after_a_while = start + Duration::from_secs(60);
        assert!((0..2000).all(|_| quota.admits(80, after_a_while)), "nothing is owed");
    }

    #[test]
    fn long_lines_are_cut_by_their_bytes() {
        let quota = Quota::default();
        let start = Instant::now();
        let admitted = (0..2000).filter(|_| quota.admits(16 << 10, start)).count();
        assert_eq!(admitted as f64, BYTES_AT_ONCE / f64::from(16 << 10));
    }

    #[test]
    fn losses_are_reported_each_second_with_reason() {
        let quota = Quota::default();
        let start = Instant::now();
        assert!(quota.report(start).is_none() && quota.next_report().is_none());
        assert_eq!((0..2100).filter(|_| quota.admits(80, start)).count(), 2000);
        let text = quota.report(start).unwrap();
        assert_eq!(text, "100 lines were dropped: a function may log 5000 lines and 2MiB a second");
        quota.queue_was_full();
        assert!(quota.report(start).is_none());
        let next = quota.next_report().unwrap();
        assert_eq!(next, start + REPORT);
        assert!(quota.report(next).unwrap().starts_with("1 lines were lost: the queue"));
        assert!(quota.next_report().is_none());
    }

    #[test]
    fn a_container_that_writes_without_end_waits() {
        let mut rate = ReadRate::new();
        let start = Instant::now();
        assert!(rate.read(4 << 20, start).is_none());
        let wait = rate.read(1 << 20, start).unwrap();
        assert_eq!(wait.as_millis(), 62, "a sixteenth of a second");
        assert!(rate.read(1, start + wait + wait).is_none());
    }
}
