//! The history of one function, over all its versions on this VM: its pauses, and the cost of a
//! start. `instance/pool.rs` reports when a version gets its first call and when its last one ends;
//! that is all that a call pays for it: a lock held for some nanoseconds.

use super::{
    cost::StartCost,
    histogram::Histogram,
    policy::{self, Choice, Settings},
};
use crate::instance::warnings::Warnings;
use crate::moment::Moment;
use epsilon_api::vm::StartPhases;
use parking_lot::Mutex;
use std::{collections::VecDeque, time::Duration};

/// This many bad ends within [`CRASH_LOOP_WINDOW`] are a crash loop: more than a burst of calls
/// causes in one broken instance.
const CRASH_LOOP_ENDS: usize = 3;
const CRASH_LOOP_WINDOW: Duration = Duration::from_secs(10);

/// Shared by the pools of the function's versions.
#[derive(Debug, Default)]
pub(crate) struct History {
    known: Mutex<Known>,
    /// Here, because a pool ends with its last instance and is made again by the next call.
    pub(crate) warnings: Warnings,
}

#[derive(Debug, Default)]
struct Known {
    pauses: Histogram,
    start: StartCost,
    /// Number of versions with running calls.
    busy: u32,
    /// When the last call ended; `None` while one runs, or if unknown.
    ended: Option<Moment>,
    /// The decision from `pauses`, until one is added.
    choice: Option<Choice>,
    /// When its last instances crashed or failed, the newest last.
    bad_ends: VecDeque<Moment>,
    /// Those of them whose instance had not served much.
    early_ends: VecDeque<Moment>,
    /// Whether something changed since it was written to disk.
    is_changed: bool,
}

/// The part that survives a restart of the agent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StoredHistory {
    pub(crate) pauses: Histogram,
    pub(crate) start: Option<Duration>,
}

impl History {
    pub(crate) fn restore(stored: StoredHistory) -> Self {
        let StoredHistory { pauses, start } = stored;
        let known = Known { pauses, start: StartCost::known(start), ..Known::default() };
        Self { known: Mutex::new(known), warnings: Warnings::default() }
    }

    /// A call came to a version that runs none. It may wait for a start, so it has not begun yet.
    pub(crate) fn call_arrived(&self, now: Moment) {
        self.known.lock().note_pause(now);
    }

    /// A version that ran no call runs one.
    pub(crate) fn call_began(&self, now: Moment) {
        let mut known = self.known.lock();
        known.note_pause(now);
        known.busy += 1;
    }

    /// The last call of the version ended.
    pub(crate) fn calls_ended(&self, now: Moment) {
        let mut known = self.known.lock();
        known.busy = known.busy.saturating_sub(1);
        if known.busy == 0 {
            known.ended = Some(now);
        }
    }

    /// A start succeeded. Pulls are not counted: the next start finds the layers here.
    pub(crate) fn started(&self, phases: &StartPhases) {
        let mut known = self.known.lock();
        known.start.add(phases.total().saturating_sub(phases.pull + phases.layers));
        known.is_changed = true;
    }

    /// An instance crashed, timed out, or failed to start; `is_early`: before it had served much.
    pub(crate) fn ended_badly(&self, now: Moment, is_early: bool) {
        let known = &mut *self.known.lock();
        remember(&mut known.bad_ends, now);
        if is_early {
            remember(&mut known.early_ends, now);
        }
    }

    /// Whether instances end so often that the function boots its own cells, one at a time, and
    /// leaves ready ones to other functions.
    pub(crate) fn is_crash_looping(&self, now: Moment) -> bool {
        is_crash_looping(&self.known.lock().bad_ends, now)
    }

    /// Whether they do so before they have served much: then its starts are slowed down.
    pub(crate) fn crashes_early(&self, now: Moment) -> bool {
        is_crash_looping(&self.known.lock().early_ends, now)
    }

    /// Expected cost of the next start.
    pub(crate) fn start_cost(&self) -> Duration {
        self.known.lock().start.get()
    }

    /// The keep-alive decision, and when the last call ended if none runs.
    pub(crate) fn choice(&self, settings: &Settings) -> (Choice, Option<Moment>) {
        let mut known = self.known.lock();
        let Known { pauses, choice, ended, .. } = &mut *known;
        (*choice.get_or_insert_with(|| policy::choose(pauses, None, settings)), *ended)
    }

    #[cfg(test)]
    pub(crate) fn has_samples(&self) -> bool {
        self.known.lock().pauses.samples() > 0.0
    }

    /// The part to write, and whether it changed since the last time.
    pub(crate) fn stored(&self) -> (StoredHistory, bool) {
        let mut known = self.known.lock();
        let is_changed = std::mem::take(&mut known.is_changed);
        (StoredHistory { pauses: known.pauses.clone(), start: known.start.measured() }, is_changed)
    }
}

fn remember(ends: &mut VecDeque<Moment>, now: Moment) {
    if ends.len() == CRASH_LOOP_ENDS {
        ends.pop_front();
    }
    ends.push_back(now);
}

fn is_crash_looping(ends: &VecDeque<Moment>, now: Moment) -> bool {
    let oldest = ends.front().filter(|_| ends.len() == CRASH_LOOP_ENDS);
    oldest.is_some_and(|then| now.saturating_sub(*then) < CRASH_LOOP_WINDOW)
}

impl Known {
    fn note_pause(&mut self, now: Moment) {
        if let Some(ended) = self.ended.take() {
            self.pauses.add(now.saturating_sub(ended));
            self.choice = None;
            self.is_changed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn upper(history: &History) -> Duration {
        history.known.lock().pauses.upper(1.0)
    }

    #[test]
    fn pause_lasts_from_last_end_to_next_call() {
        let history = History::default();
        history.call_began(s(0));
        assert!(!history.has_samples(), "what was before is unknown");
        history.call_began(s(5)); // another version
        history.calls_ended(s(10));
        history.call_began(s(500));
        assert!(!history.has_samples(), "the other one was at work all the time");
        history.calls_ended(s(510));
        history.calls_ended(s(600));
        history.call_arrived(s(1200)); // and waits for a start
        history.call_began(s(1230));
        assert_eq!(upper(&history), s(660), "ten minutes, without the wait");
        assert_eq!(history.known.lock().pauses.samples(), 1.0);
    }

    #[test]
    fn three_bad_ends_in_ten_seconds_are_no_accident() {
        let history = History::default();
        for now in [0, 8, 9] {
            assert!(!history.is_crash_looping(s(now)));
            history.ended_badly(s(now), now > 0);
        }
        assert!(
            history.is_crash_looping(s(9)) && !history.is_crash_looping(s(10)),
            "the first one is over"
        );
        assert!(!history.crashes_early(s(9)), "one of them had served");
        history.ended_badly(s(17), true);
        assert!(history.is_crash_looping(s(17)) && !history.is_crash_looping(s(18)));
        assert!(history.crashes_early(s(17)) && !history.crashes_early(s(18)));
    }

    #[test]
    fn start_cost_excludes_fetching_code() {
        let history = History::default();
        let phases = StartPhases { pull: s(30), layers: s(1), init: s(2), ..Default::default() };
        history.started(&phases);
        assert_eq!(history.start_cost(), s(2));
        let (stored, is_changed) = history.stored();
        assert!(is_changed);
        assert_eq!(History::restore(stored).start_cost(), s(2));
        assert!(!history.stored().1, "no change since");
    }
}
