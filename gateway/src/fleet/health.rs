//! Whether a VM responds. A pure state machine: a state, an event and a time give the next state;
//! no clock, no I/O. The events come from the stream of the VM's reports (active health check) and
//! from its calls (passive health check).
//!
//! ```text
//!          line                              broken
//! new VM ───────▶ Up ◀──────────────────▶ Suspect
//!                 │ ▲         line           │
//!   silence, refused,│ failures              │ silence, refused, failures
//!                 ▼ │ line, after `until`     ▼
//!                  Out ◀──────────────────────┘
//! ```
//! A report that arrives after `until` lets a VM back in. The VM is then on trial for the failure
//! window: if it is taken out again within it, it stays out twice as long. Whether the last VM may
//! be used although it is out is not decided here: placement takes such a VM if no other responds.

use parking_lot::Mutex;
use std::{
    sync::atomic::{AtomicU8, Ordering::Relaxed},
    time::Duration,
};
use tokio::time::Instant;

/// How long a VM stays out at first after a refused connection or silence: until its next report
/// after that.
const ABSENT_FOR: Duration = Duration::from_secs(1);
/// Longest time out, however often the VM was taken out.
const LONGEST_OUT: Duration = Duration::from_secs(60);

/// When a VM is taken out (ejected as an outlier).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Time without a report after which it is out.
    pub(crate) silence: Duration,
    /// Number of calls that failed by the platform's fault …
    pub(crate) failures: u32,
    /// … within this time that take it out …
    pub(crate) window: Duration,
    /// … for this long at first.
    pub(crate) pause: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            // Three reports.
            silence: 3 * epsilon_api::fleet::REPORT,
            failures: 5,
            window: Duration::from_secs(10),
            pause: Duration::from_secs(5),
        }
    }
}

/// An observation of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A report was received.
    Report,
    /// The stream of reports ended or could not be opened.
    Broken,
    /// A connection was refused: no process listens at its address.
    Refused,
    /// A call failed, by no fault of the function and not for lack of room.
    Failed,
    /// A call was answered, with success or an error of the function.
    Answered,
    /// Time passes.
    Tick,
}

/// Why a VM is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutReason {
    /// It has never reported.
    NeverReported,
    /// No report for too long.
    Silent,
    /// It refused a connection.
    Refused,
    /// Too many calls failed.
    Failing,
}

impl OutReason {
    /// The reason in the API and in metric labels.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NeverReported => "never_reported",
            Self::Silent => "silent",
            Self::Refused => "refused",
            Self::Failing => "failing",
        }
    }
}

/// Whether a VM responds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It responds.
    Up,
    /// Its report stream broke; the VM may be gone.
    Suspect,
    /// It does not respond, or its calls fail.
    Out(OutReason),
}

/// The health of one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    standing: Standing,
    /// Time of the last report; silence counts from it.
    last_report: Instant,
    /// While out: the earliest time to let it in. While up: when it was let in.
    until: Instant,
    /// How long it was out last; doubles while it is on trial.
    pause: Duration,
    /// Failures in the window that began at `failing_since`.
    failures: u32,
    failing_since: Instant,
}

impl Health {
    /// A VM that has not reported yet.
    pub(crate) fn never_reported(now: Instant) -> Self {
        Self {
            standing: Standing::Out(OutReason::NeverReported),
            last_report: now,
            until: now,
            pause: Duration::ZERO,
            failures: 0,
            failing_since: now,
        }
    }

    /// The next state.
    pub(crate) fn step(self, event: Event, now: Instant, policy: &Policy) -> Self {
        use Standing::{Out, Suspect, Up};
        match (self.standing, event) {
            (Up | Suspect, Event::Report) => Self { standing: Up, last_report: now, ..self },
            (Out(_), Event::Report) if now >= self.until => {
                Self { standing: Up, last_report: now, until: now, failures: 0, ..self }
            }
            (Out(_), Event::Report) => Self { last_report: now, ..self },

            (Up, Event::Broken) => Self { standing: Suspect, ..self },
            (Suspect | Out(_), Event::Broken) => self,

            (Up | Suspect, Event::Refused) => self.eject(OutReason::Refused, ABSENT_FOR, now, policy),
            (Up | Suspect, Event::Tick) if now >= self.last_report + policy.silence => {
                self.eject(OutReason::Silent, ABSENT_FOR, now, policy)
            }
            (Up | Suspect, Event::Failed) => {
                let failing = self.one_more_failure(now, policy);
                if failing.failures < policy.failures {
                    return failing;
                }
                failing.eject(OutReason::Failing, policy.pause, now, policy)
            }
            (Up | Suspect, Event::Answered) => Self { failures: 0, ..self },

            (Up | Suspect, Event::Tick)
            // Results of calls that were in flight when it was taken out.
            | (Out(_), Event::Refused | Event::Failed | Event::Answered | Event::Tick) => self,
        }
    }

    fn one_more_failure(self, now: Instant, policy: &Policy) -> Self {
        if self.failures > 0 && now < self.failing_since + policy.window {
            return Self { failures: self.failures + 1, ..self };
        }
        Self { failures: 1, failing_since: now, ..self }
    }

    fn eject(self, why: OutReason, first: Duration, now: Instant, policy: &Policy) -> Self {
        // For a VM that is up, `until` is the time when it was let in.
        let on_trial = !self.pause.is_zero() && now < self.until + policy.window;
        let pause = if on_trial { (self.pause * 2).max(first).min(LONGEST_OUT) } else { first };
        Self { standing: Standing::Out(why), until: now + pause, pause, failures: 0, ..self }
    }
}

/// A VM's health, shared by its calls and its watcher. Reading it is one atomic operation.
#[derive(Debug)]
pub(crate) struct SharedHealth {
    /// `None` for the VM in this process, which is always up.
    policy: Option<Policy>,
    state: Mutex<Health>,
    encoded: AtomicU8,
}

impl SharedHealth {
    /// The health of a VM on another machine.
    pub(crate) fn remote(policy: Policy, now: Instant) -> Self {
        let state = Health::never_reported(now);
        Self {
            policy: Some(policy),
            state: Mutex::new(state),
            encoded: AtomicU8::new(encode(&state)),
        }
    }

    /// The health of the VM in this process.
    pub(crate) fn local(now: Instant) -> Self {
        let state = Health { standing: Standing::Up, ..Health::never_reported(now) };
        Self { policy: None, state: Mutex::new(state), encoded: AtomicU8::new(encode(&state)) }
    }

    /// Records an event. Returns the standing before and after it if it changed.
    pub(crate) fn note(&self, event: Event, now: Instant) -> Option<(Standing, Standing)> {
        let policy = self.policy.as_ref()?;
        // Fast path: the event of nearly every call takes no lock.
        if event == Event::Answered && self.encoded.load(Relaxed) == UP {
            return None;
        }
        let mut state = self.state.lock();
        let before = state.standing;
        *state = state.step(event, now, policy);
        let after = state.standing;
        self.encoded.store(encode(&state), Relaxed);
        (before != after).then_some((before, after))
    }

    /// The standing as of the last event.
    pub(crate) fn standing(&self) -> Standing {
        match self.encoded.load(Relaxed) {
            UP | UP_WITH_FAILURES => Standing::Up,
            SUSPECT => Standing::Suspect,
            SILENT => Standing::Out(OutReason::Silent),
            REFUSED => Standing::Out(OutReason::Refused),
            FAILING => Standing::Out(OutReason::Failing),
            _ => Standing::Out(OutReason::NeverReported),
        }
    }
}

const UP: u8 = 0;
const UP_WITH_FAILURES: u8 = 1;
const SUSPECT: u8 = 2;
const UNHEARD: u8 = 3;
const SILENT: u8 = 4;
const REFUSED: u8 = 5;
const FAILING: u8 = 6;

fn encode(health: &Health) -> u8 {
    match health.standing {
        Standing::Up if health.failures == 0 => UP,
        Standing::Up => UP_WITH_FAILURES,
        Standing::Suspect => SUSPECT,
        Standing::Out(OutReason::NeverReported) => UNHEARD,
        Standing::Out(OutReason::Silent) => SILENT,
        Standing::Out(OutReason::Refused) => REFUSED,
        Standing::Out(OutReason::Failing) => FAILING,
    }
}

#[cfg(test)]
mod tests {
    use super::{Event::*, *};

    const POLICY: Policy = Policy {
        silence: Duration::from_secs(3),
        failures: 3,
        window: Duration::from_secs(10),
        pause: Duration::from_secs(5),
    };

    /// Events as `(milliseconds, event)`; returns the standing after the last one.
    fn after(events: &[(u64, Event)]) -> &'static str {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let health = events.iter().fold(Health::never_reported(start), |health, (ms, event)| {
            health.step(*event, at(*ms), &POLICY)
        });
        match health.standing {
            Standing::Up => "up",
            Standing::Suspect => "suspect",
            Standing::Out(why) => why.as_str(),
        }
    }

    /// Each row is a test: events with their times => standing at the end.
    macro_rules! stories {
        ($($name:ident: $($at:literal $event:ident),* => $want:expr;)*) => {$(
            #[test]
            fn $name() {
                assert_eq!(after(&[$(($at, $event)),*]), $want);
            }
        )*};
    }

    stories! {
        who_never_spoke_is_out: 9000 Tick => "never_reported";
        the_first_line_lets_it_in: 10 Report => "up";
        lines_keep_it_in: 0 Report, 1000 Report, 2000 Report, 4900 Tick => "up";
        two_missed_lines_are_no_reason: 0 Report, 2999 Tick => "up";
        three_are: 0 Report, 3000 Tick => "silent";
        a_broken_stream_is_suspect_at_once: 0 Report, 500 Broken => "suspect";
        and_heals_with_a_line: 0 Report, 500 Broken, 800 Report => "up";
        or_goes_out_with_silence: 0 Report, 500 Broken, 3000 Tick => "silent";
        a_refused_connection_is_out_at_once: 0 Report, 500 Refused => "refused";
        also_for_a_suspect: 0 Report, 500 Broken, 501 Refused => "refused";
        a_line_at_once_does_not_let_it_back: 0 Report, 500 Refused, 600 Report => "refused";
        one_after_the_pause_does: 0 Report, 500 Refused, 1500 Report => "up";
        silence_ends_with_a_line: 0 Report, 3000 Tick, 4000 Report => "up";
        refused_again_soon_stays_out_twice_as_long:
            0 Report, 500 Refused, 1500 Report, 2000 Refused, 3500 Report => "refused";
        and_is_back_after_that: 0 Report, 500 Refused, 1500 Report, 2000 Refused, 4000 Report => "up";
        refused_again_much_later_begins_anew:
            0 Report, 500 Refused, 1500 Report, 60000 Refused, 61000 Report => "up";
        two_failures_are_no_reason: 0 Report, 1 Failed, 2 Failed => "up";
        three_in_a_row_are: 0 Report, 1 Failed, 2 Failed, 3 Failed => "failing";
        an_answer_between_them_clears: 0 Report, 1 Failed, 2 Failed, 3 Answered, 4 Failed => "up";
        failures_far_apart_are_no_row: 0 Report, 1 Failed, 9000 Failed, 10500 Failed, 10501 Failed => "up";
        failing_stays_out_for_its_time: 0 Report, 1 Failed, 2 Failed, 3 Failed, 4000 Report => "failing";
        and_a_line_is_the_probe: 0 Report, 1 Failed, 2 Failed, 3 Failed, 5003 Report => "up";
        calls_that_end_later_change_nothing:
            0 Report, 500 Refused, 501 Failed, 502 Answered, 503 Refused, 504 Broken, 505 Tick => "refused";
        failing_again_after_the_probe_doubles:
            0 Report, 1 Failed, 2 Failed, 3 Failed, 5003 Report, 5004 Failed, 5005 Failed, 5006 Failed, 14000 Report
            => "failing";
    }

    #[test]
    fn a_pause_has_a_longest() {
        let mut now = Instant::now();
        let mut health = Health::never_reported(now).step(Report, now, &POLICY);
        for _ in 0..40 {
            health = health.step(Refused, now, &POLICY);
            assert!(health.pause <= LONGEST_OUT);
            now += health.pause;
            health = health.step(Report, now, &POLICY);
            assert_eq!(health.standing, Standing::Up);
        }
    }

    #[test]
    fn the_vm_in_this_process_is_always_there() {
        let now = Instant::now();
        let condition = SharedHealth::local(now);
        for event in [Broken, Refused, Failed, Failed, Failed, Tick] {
            assert_eq!(condition.note(event, now + Duration::from_secs(60)), None);
            assert_eq!(condition.standing(), Standing::Up);
        }
    }

    #[test]
    fn shared_health_reports_changes_and_resets_on_answers() {
        let now = Instant::now();
        let condition = SharedHealth::remote(POLICY, now);
        assert_eq!(condition.standing(), Standing::Out(OutReason::NeverReported));
        let came = Some((Standing::Out(OutReason::NeverReported), Standing::Up));
        assert_eq!(condition.note(Report, now), came);
        for event in [Report, Failed, Failed, Answered, Failed, Failed] {
            assert_eq!(condition.note(event, now), None);
        }
        assert_eq!(
            condition.note(Failed, now),
            Some((Standing::Up, Standing::Out(OutReason::Failing)))
        );
        assert_eq!(condition.standing(), Standing::Out(OutReason::Failing));
    }
}
