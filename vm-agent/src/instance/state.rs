//! The lifecycle of one instance as a state machine. Pure: no clock, no I/O, no locks.
//!
//! ```text
//! Starting ─healthy─▶ Idle ◀─call begins / last ends─▶ Busy ─stop, shared timeout─▶ Draining
//!     └───────────────┴─ timer, stop, kill, timeout, one call ─▶ Stopping ◀─ last ends, limit ─┘
//!                                                                └─ exited ─▶ Gone
//! ```
//! `pool.rs` applies [`Event`]s under its lock; `runner.rs` carries out [`Effect::Stop`]. Memory is
//! given back on `Gone`, never on `Stopping`: until the container is removed, it is in use.

use crate::moment::Moment;
use epsilon_api::vm::InstanceState;
use std::{num::NonZeroU32, time::Duration};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The container was requested; its code is not loaded yet.
    Starting,
    /// Healthy, without calls.
    Idle { since: Moment },
    /// Serving `active` calls.
    Busy { active: NonZeroU32 },
    /// Takes no new call; killed when the last one ends or at `kill_at`.
    Draining { active: NonZeroU32, kill_at: Moment, why: StopReason },
    /// The stop was requested; the container may still exist.
    Stopping { why: StopReason },
    /// The container is removed. Nothing leaves this state.
    Gone { why: StopReason },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The code is loaded and the calls' listener accepts.
    Healthy,
    CallBegan,
    CallEnded,
    /// A call was still running at its deadline: its code may run forever.
    CallTimedOut,
    /// Time passed. `idle`: how long the instance may be idle; `None` where the version needs it.
    Tick {
        idle: Option<Duration>,
    },
    /// Take no new call; stop when none runs.
    Stop(StopReason),
    /// Stop now, whatever runs.
    Kill(StopReason),
    /// The container exited.
    Exited,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    NeverReady,
    IdleTooLong,
    /// `isolation: call`: it served its only call.
    OneCall,
    Evicted,
    Requested,
    TimedOut,
    Crashed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    /// SIGTERM, the function's `stopGrace`, then the container is removed.
    Stop,
}

/// An illegal transition, a bug in the pool: logged at error level, never swallowed.
#[derive(Debug, thiserror::Error)]
#[error("{event:?} cannot happen in {state:?}")]
pub(crate) struct IllegalTransition {
    pub(crate) state: State,
    pub(crate) event: Event,
}

pub(crate) struct Policy {
    /// The function's timeout: no call that runs now can run longer than this.
    pub(crate) timeout: Duration,
    /// `isolation: call`: no instance serves a second call.
    pub(crate) one_call: bool,
}

impl State {
    pub(crate) fn step(
        self,
        event: Event,
        now: Moment,
        policy: &Policy,
    ) -> Result<(Self, Effect), IllegalTransition> {
        use {Effect::Nothing, Event::*, State::*};
        let stopping = |why| (Stopping { why }, Effect::Stop);
        let draining =
            |active, why| (Draining { active, kill_at: now + policy.timeout, why }, Nothing);
        Ok(match (self, event) {
            (Starting, Healthy) => (Idle { since: now }, Nothing),
            (Starting, Stop(why) | Event::Kill(why)) => stopping(why),

            (Idle { .. }, CallBegan) => (Busy { active: NonZeroU32::MIN }, Nothing),
            (Idle { since }, Tick { idle: Some(idle) }) if now >= since + idle => {
                stopping(StopReason::IdleTooLong)
            }
            (Idle { .. }, Stop(why)) => stopping(why),

            (Busy { active }, CallBegan) if !policy.one_call => {
                (Busy { active: active.saturating_add(1) }, Nothing)
            }
            (Busy { active }, CallEnded) => match one_less(active) {
                Some(active) => (Busy { active }, Nothing),
                None if policy.one_call => stopping(StopReason::OneCall),
                None => (Idle { since: now }, Nothing),
            },
            (Busy { active }, CallTimedOut) => match one_less(active) {
                Some(active) => draining(active, StopReason::TimedOut),
                None => stopping(StopReason::TimedOut),
            },
            (Busy { active }, Stop(why)) => draining(active, why),

            (Draining { active, kill_at, why }, CallEnded | CallTimedOut) => {
                match one_less(active) {
                    Some(active) => (Draining { active, kill_at, why }, Nothing),
                    None => stopping(why),
                }
            }
            (Draining { kill_at, why, .. }, Tick { .. }) if now >= kill_at => stopping(why),

            (Idle { .. } | Busy { .. } | Draining { .. }, Event::Kill(why)) => stopping(why),

            (Starting | Idle { .. } | Busy { .. }, Exited) => {
                (Gone { why: StopReason::Crashed }, Nothing)
            }
            (Draining { why, .. } | Stopping { why }, Exited) => (Gone { why }, Nothing),

            // Harmless: early timers, repeated orders, calls and probes that outlive the container.
            (s, Tick { .. }) => (s, Nothing),
            (s @ Draining { .. }, Stop(_)) => (s, Nothing),
            (s @ (Stopping { .. } | Gone { .. }), Stop(_) | Event::Kill(_)) => (s, Nothing),
            (s @ (Stopping { .. } | Gone { .. }), Healthy | CallEnded | CallTimedOut)
            | (s @ Gone { .. }, Exited) => (s, Nothing),

            (state, event @ (Healthy | CallBegan | CallEnded | CallTimedOut)) => {
                return Err(IllegalTransition { state, event });
            }
        })
    }

    /// Whether calls can be served now or as soon as a slot is free.
    pub(crate) fn is_live(self) -> bool {
        matches!(self, Self::Idle { .. } | Self::Busy { .. })
    }

    /// Number of running calls.
    pub(crate) fn active(self) -> u32 {
        match self {
            Self::Busy { active } | Self::Draining { active, .. } => active.get(),
            Self::Starting | Self::Idle { .. } | Self::Stopping { .. } | Self::Gone { .. } => 0,
        }
    }

    /// Whether it ends because a call did not. For crashes the exit status decides whose fault it
    /// is, for failed starts the failure.
    pub(crate) fn has_timed_out(self) -> bool {
        match self {
            Self::Stopping { why } | Self::Gone { why } => why == StopReason::TimedOut,
            Self::Starting | Self::Idle { .. } | Self::Busy { .. } | Self::Draining { .. } => false,
        }
    }

    /// The state in listings and metrics.
    pub(crate) fn reported(self) -> InstanceState {
        match self {
            Self::Starting => InstanceState::Starting,
            Self::Idle { .. } => InstanceState::Idle,
            Self::Busy { .. } => InstanceState::Busy,
            Self::Draining { .. } => InstanceState::Draining,
            Self::Stopping { .. } | Self::Gone { .. } => InstanceState::Stopping,
        }
    }
}

fn one_less(n: NonZeroU32) -> Option<NonZeroU32> {
    NonZeroU32::new(n.get() - 1)
}

#[cfg(test)]
mod tests {
    use super::{Effect::Nothing, Event::*, State::*, *};

    const POLICY: Policy = Policy { timeout: s(10), one_call: false };
    const ONE_CALL: Policy = Policy { one_call: true, ..POLICY };
    const ONE: NonZeroU32 = NonZeroU32::MIN;
    const TWO: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);
    const STOP: Effect = Effect::Stop;
    const SPARE: Event = Tick { idle: Some(s(60)) };
    const fn s(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    /// Each row is a test: state + event, at a moment => state and effect, or `None` for illegal.
    macro_rules! steps {
        ($policy:ident: $($name:ident: $state:expr, $event:expr, at $now:expr => $want:expr;)*) => {$(
            #[test]
            fn $name() {
                assert_eq!($state.step($event, $now, &$policy).ok(), $want);
            }
        )*};
    }

    steps! {
        ONE_CALL:
        one_call_instance_stops_after_its_call: Busy { active: ONE }, CallEnded, at s(3)
            => Some((Stopping { why: StopReason::OneCall }, STOP));
        timeout_ends_a_one_call_instance: Busy { active: ONE }, CallTimedOut, at s(3)
            => Some((Stopping { why: StopReason::TimedOut }, STOP));
        the_first_call_begins: Idle { since: s(1) }, CallBegan, at s(2) => Some((Busy { active: ONE }, Nothing));
        a_second_call_beside_it_does_not: Busy { active: ONE }, CallBegan, at s(2) => None;
        unused_one_call_instance_stops: Idle { since: s(1) }, SPARE, at s(61)
            => Some((Stopping { why: StopReason::IdleTooLong }, STOP));
        stop_of_one_call_instance_lets_it_end: Busy { active: ONE }, Stop(StopReason::Requested), at s(2)
            => Some((Draining { active: ONE, kill_at: s(12), why: StopReason::Requested }, Nothing));
    }

    steps! {
        POLICY:
        healthy_becomes_idle: Starting, Healthy, at s(1) => Some((Idle { since: s(1) }, Nothing));
        failed_start_is_killed: Starting, Event::Kill(StopReason::NeverReady), at s(5)
            => Some((Stopping { why: StopReason::NeverReady }, STOP));
        start_can_be_cancelled: Starting, Stop(StopReason::Requested), at s(5)
            => Some((Stopping { why: StopReason::Requested }, STOP));
        starting_takes_no_call: Starting, CallBegan, at s(1) => None;
        idle_too_long_stops: Idle { since: s(1) }, SPARE, at s(61)
            => Some((Stopping { why: StopReason::IdleTooLong }, STOP));
        idle_a_bit_less_stays: Idle { since: s(1) }, SPARE, at s(60) => Some((Idle { since: s(1) }, Nothing));
        min_instances_stay: Idle { since: s(1) }, Tick { idle: None }, at s(999)
            => Some((Idle { since: s(1) }, Nothing));
        a_busy_instance_is_not_reaped: Busy { active: ONE }, SPARE, at s(999) => Some((Busy { active: ONE }, Nothing));
        last_call_restarts_clock: Busy { active: ONE }, CallEnded, at s(9) => Some((Idle { since: s(9) }, Nothing));
        eviction_takes_an_idle_one: Idle { since: s(1) }, Stop(StopReason::Evicted), at s(2)
            => Some((Stopping { why: StopReason::Evicted }, STOP));
        stop_lets_a_call_finish: Busy { active: ONE }, Stop(StopReason::Requested), at s(2)
            => Some((Draining { active: ONE, kill_at: s(12), why: StopReason::Requested }, Nothing));
        alone_a_timeout_kills_at_once: Busy { active: ONE }, CallTimedOut, at s(2)
            => Some((Stopping { why: StopReason::TimedOut }, STOP));
        shared_a_timeout_lets_the_others_end: Busy { active: TWO }, CallTimedOut, at s(2)
            => Some((Draining { active: ONE, kill_at: s(12), why: StopReason::TimedOut }, Nothing));
        the_last_one_of_a_drain_kills: Draining { active: ONE, kill_at: s(12), why: StopReason::TimedOut }, CallEnded, at s(3)
            => Some((Stopping { why: StopReason::TimedOut }, STOP));
        two_timeouts_kill: Draining { active: ONE, kill_at: s(12), why: StopReason::TimedOut }, CallTimedOut, at s(3)
            => Some((Stopping { why: StopReason::TimedOut }, STOP));
        a_drain_has_a_limit: Draining { active: TWO, kill_at: s(12), why: StopReason::Requested }, SPARE, at s(12)
            => Some((Stopping { why: StopReason::Requested }, STOP));
        a_draining_one_takes_no_call: Draining { active: ONE, kill_at: s(12), why: StopReason::Requested }, CallBegan, at s(3) => None;
        kill_does_not_wait: Busy { active: TWO }, Event::Kill(StopReason::Crashed), at s(3)
            => Some((Stopping { why: StopReason::Crashed }, STOP));
        one_kill_is_enough: Stopping { why: StopReason::Requested }, Event::Kill(StopReason::Crashed), at s(3)
            => Some((Stopping { why: StopReason::Requested }, Nothing));
        unrequested_exit_is_a_crash: Busy { active: ONE }, Exited, at s(3)
            => Some((Gone { why: StopReason::Crashed }, Nothing));
        requested_exit_is_no_crash: Stopping { why: StopReason::Evicted }, Exited, at s(3)
            => Some((Gone { why: StopReason::Evicted }, Nothing));
    }

    const EVENTS: [Event; 9] = [
        Healthy,
        CallBegan,
        CallEnded,
        CallTimedOut,
        Tick { idle: Some(s(60)) },
        Tick { idle: None },
        Stop(StopReason::Requested),
        Event::Kill(StopReason::Crashed),
        Exited,
    ];

    /// Every event in every state: time, orders and exits are always legal; a call needs a live
    /// one.
    #[test]
    fn every_event_in_every_state() {
        let why = StopReason::Requested;
        let states = [
            Starting,
            Idle { since: s(0) },
            Busy { active: TWO },
            Draining { active: TWO, kill_at: s(10), why },
            Stopping { why },
            Gone { why },
        ];
        for state in states {
            for event in EVENTS {
                let step = state.step(event, s(5), &POLICY);
                let legal = match event {
                    Healthy => !matches!(state, Idle { .. } | Busy { .. } | Draining { .. }),
                    CallBegan => state.is_live(),
                    CallEnded | CallTimedOut => !matches!(state, Starting | Idle { .. }),
                    Tick { .. } | Stop(_) | Event::Kill(_) | Exited => true,
                };
                assert_eq!(step.is_ok(), legal, "{event:?} in {state:?}");
                let stops = matches!(step, Ok((_, Effect::Stop)));
                assert!(
                    !stops || matches!(step, Ok((Stopping { .. }, _))),
                    "{event:?} in {state:?}"
                );
            }
        }
    }

    #[test]
    fn nothing_leaves_gone() {
        let gone = Gone { why: StopReason::Requested };
        for event in EVENTS {
            let step = gone.step(event, s(99), &POLICY);
            assert!(
                matches!(step, Err(_) | Ok((Gone { why: StopReason::Requested }, Nothing))),
                "{event:?}"
            );
        }
    }
}
