//! The timers of one instance: when it stops because it is idle, and when its processes are frozen.

use super::{PoolState, entry::Entry};
use crate::instance::pool::{Key, actions::Actions};
use crate::instance::state::{Event, State};
use crate::keepalive::policy::{Choice, Reason};
use crate::moment::Moment;
use std::time::Duration;

/// What is known of freezing an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::instance::pool) enum Freezer {
    /// Not looked up yet.
    Unknown,
    Found,
    /// It is frozen already.
    Applied,
}

/// What to do now for the freeze timer. A freeze is carried out under the pool's lock, so that no
/// call begins at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::instance::pool) enum Freeze {
    Nothing,
    Now,
    LookUpFreezer,
}

/// Result of checking an instance's timers.
#[derive(Debug)]
pub(in crate::instance::pool) struct Check<W> {
    pub(in crate::instance::pool) actions: Actions<W>,
    /// When to check again; `None`: no timer runs.
    pub(in crate::instance::pool) next: Option<Moment>,
    pub(in crate::instance::pool) freeze: Freeze,
}

impl<W> PoolState<W> {
    /// Applies the instance's timers. `choice`: how long the function's last instance stays.
    pub(in crate::instance::pool) fn tick(
        &mut self,
        key: Key,
        choice: &Choice,
        freezer: Freezer,
        now: Moment,
    ) -> Check<W> {
        let mut actions = Actions::default();
        let idle = self.idle_time(key, choice);
        let is_spare = self.live() > self.min_live();
        self.step(key, Event::Tick { idle: is_spare.then_some(idle) }, now, &mut actions);
        let state = self.entries.get(&key).map(|entry| entry.state);
        let stop_check = match state {
            Some(State::Idle { since }) if is_spare => Some(since + idle),
            // An instance that becomes idle later has its whole idle time ahead, which may have
            // changed by then.
            Some(State::Idle { .. } | State::Busy { .. }) => {
                Some(now + idle.min(self.rules.idle_default))
            }
            Some(State::Draining { kill_at, .. }) => Some(kill_at),
            Some(State::Starting | State::Stopping { .. } | State::Gone { .. }) | None => None,
        };
        let (freeze, freeze_check) = self.freeze(state, freezer, now);
        if !actions.stops.is_empty() {
            self.dispatch(now, None, &mut actions);
        }
        let next = [stop_check, freeze_check].into_iter().flatten().min();
        Check { actions, next, freeze }
    }

    /// The idle timeout of this instance. Pauses between calls say nothing about concurrent calls:
    /// only the last instance stays as long as the history suggests, those beside it as long as the
    /// operator's default.
    fn idle_time(&self, key: Key, choice: &Choice) -> Duration {
        let entry = self.entries.get(&key);
        if let Some(Entry { prewarmed_until: Some(until), state: State::Idle { since }, .. }) =
            entry
        {
            return until.saturating_sub(*since);
        }
        let is_last = self.live() <= 1;
        let is_set = choice.why == Reason::Set;
        if is_last || is_set { choice.idle } else { self.rules.idle_default }
    }

    /// Freezes an instance that was idle for long enough, where its function allows it; or returns
    /// when that is, if no call begins.
    fn freeze(
        &self,
        state: Option<State>,
        freezer: Freezer,
        now: Moment,
    ) -> (Freeze, Option<Moment>) {
        let Some(after) = self.rules.freeze_after else { return (Freeze::Nothing, None) };
        let since = match state {
            Some(State::Idle { since }) => since,
            Some(State::Busy { .. }) => now, // it may become idle without an event
            Some(
                State::Starting
                | State::Draining { .. }
                | State::Stopping { .. }
                | State::Gone { .. },
            )
            | None => return (Freeze::Nothing, None),
        };
        match freezer {
            // A busy one is being thawed, by the call that began.
            Freezer::Applied if matches!(state, Some(State::Idle { .. })) => {
                (Freeze::Nothing, None)
            }
            _ if now < since + after => (Freeze::Nothing, Some(since + after)),
            Freezer::Unknown => (Freeze::LookUpFreezer, None),
            Freezer::Found | Freezer::Applied => (Freeze::Now, None),
        }
    }
}
