//! From a function's pauses to the keep-alive time of an idle instance: the hybrid histogram policy
//! of "Serverless in the Wild" (Shahrad et al., USENIX ATC'20, section 4.2), without its forecast
//! for pauses beyond the histogram's range.
//!
//! ```text
//! last call ends ── idle ──▶ removed ········ prewarmed at `head` ── stays until `tail` ──▶ removed
//!                            (only where the function is periodic; else: stays until `tail`)
//! ```
//! Pure. Used by `history.rs`, and by the replay in `benches/`.

use super::histogram::{Histogram, REACH};
use epsilon_api::vm::KeepAliveSource;
use std::{fmt, time::Duration};

/// Fewer pauses than this are not representative.
const MIN_SAMPLES: f32 = 8.0;
/// Bins whose weights vary less than this are not representative (the paper's value).
const MIN_VARIATION: f32 = 2.0;
/// Where a larger share of pauses is beyond the histogram's range, it is not representative (the
/// paper's value).
const MAX_BEYOND: f32 = 0.5;
/// The percentiles that are head and tail, and the margin on each (the paper's values).
const HEAD: f32 = 0.05;
const TAIL: f32 = 0.99;
const MARGIN: f64 = 0.1;
/// An instance is removed until `head` only if `head` is at least this part of the keep-alive time,
/// and no less than the default time: for less, an extra start does not pay.
const MIN_GAP_SHARE: u32 = 4;

/// The operator's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Keep-alive time when the pauses are not representative.
    pub default: Duration,
    /// Lower limit of an adaptive time.
    pub min: Duration,
    /// Upper limit of an adaptive time.
    pub max: Duration,
}

/// The keep-alive decision for an idle instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// How long it stays after the last call.
    pub idle: Duration,
    /// The prewarm of the next one, for a periodic function.
    pub ready: Option<Ready>,
    /// The reason for the decision.
    pub why: Reason,
}

/// When an instance is prewarmed. Both count from the end of the last call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// When it is started.
    pub after: Duration,
    /// When it is removed if no call came.
    pub until: Duration,
}

/// The reason for a decision; `Display` is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The function's `idleTimeout` is set.
    Set,
    /// `isolation: call`: an instance ends with its call, so pauses do not matter.
    OneCall,
    /// Too few pauses were observed.
    TooFew {
        /// How many.
        samples: u32,
    },
    /// Most pauses are beyond the histogram's range.
    Rare {
        /// Their share, in percent.
        percent: u32,
    },
    /// All pauses are equally likely.
    Even,
    /// Nearly all pauses are shorter than this.
    Tail {
        /// Upper edge of the 99th percentile.
        upper: Duration,
        /// Share of pauses beyond the histogram's range, in percent.
        rare: u32,
        /// Whether the operator's limits changed the time.
        limited: bool,
    },
    /// Nearly all pauses are this long.
    Periodic {
        /// Lower edge of the 5th percentile.
        from: Duration,
        /// Upper edge of the 99th.
        upto: Duration,
    },
}

impl Reason {
    /// Which side decided: the function, the operator's default, or the pauses.
    pub fn by(self) -> KeepAliveSource {
        match self {
            Self::Set => KeepAliveSource::Set,
            Self::OneCall | Self::TooFew { .. } | Self::Rare { .. } | Self::Even => {
                KeepAliveSource::Default
            }
            Self::Tail { .. } | Self::Periodic { .. } => KeepAliveSource::Adaptive,
        }
    }
}

/// Decides. `set`: the function's own `idleTimeout`.
pub fn choose(pauses: &Histogram, set: Option<Duration>, settings: &Settings) -> Choice {
    if let Some(idle) = set {
        return Choice { idle, ready: None, why: Reason::Set };
    }
    let default = |why| Choice { idle: settings.default, ready: None, why };
    if pauses.samples() < MIN_SAMPLES {
        return default(Reason::TooFew { samples: pauses.samples().round() as u32 });
    }
    let rare = percent(pauses.beyond());
    if pauses.beyond() > MAX_BEYOND {
        return default(Reason::Rare { percent: rare });
    }
    if pauses.variation() < MIN_VARIATION {
        return default(Reason::Even);
    }
    let (from, upto) = (pauses.lower(HEAD), pauses.upper(TAIL));
    let (head, tail) = (from.mul_f64(1.0 - MARGIN), upto.mul_f64(1.0 + MARGIN));
    let stays = tail.clamp(settings.min, settings.max);
    if head >= settings.default.max(2 * settings.min) && head >= stays / MIN_GAP_SHARE {
        let until = tail.min(head + settings.max);
        let ready = Some(Ready { after: head, until });
        return Choice { idle: settings.min, ready, why: Reason::Periodic { from, upto } };
    }
    let why = Reason::Tail { upper: upto, rare, limited: stays != tail };
    Choice { idle: stays, ready: None, why }
}

fn percent(share: f32) -> u32 {
    (share * 100.0).round() as u32
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = humantime::format_duration;
        match *self {
            Self::Set => f.write_str("set by the function's `idleTimeout`"),
            Self::OneCall => f.write_str("the default: each call has a fresh instance"),
            Self::TooFew { samples } => {
                let were = if samples == 1 {
                    "pause between calls was"
                } else {
                    "pauses between calls were"
                };
                write!(f, "the default: {samples} {were} seen, {MIN_SAMPLES} are needed")
            }
            Self::Rare { percent } => {
                write!(f, "the default: {percent} of 100 pauses were longer than {}", time(REACH))
            }
            Self::Even => {
                f.write_str("the default: a pause of any length is as likely as any other")
            }
            Self::Tail { upper, rare, limited } => {
                write!(f, "99 of 100 pauses ")?;
                if rare > 0 {
                    write!(f, "up to {} ", time(REACH))?;
                }
                write!(f, "were shorter than {}", time(upper))?;
                if rare > 0 {
                    write!(f, "; {rare} of 100 were longer than {}", time(REACH))?;
                }
                if limited {
                    f.write_str("; the VM's limits bound the time")?;
                }
                Ok(())
            }
            Self::Periodic { from, upto } => {
                write!(f, "calls come {} to {} after the last one", time(from), time(upto))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }
    const SETTINGS: Settings = Settings { default: s(300), min: s(30), max: s(7200) };

    fn of(pauses: impl IntoIterator<Item = u64>) -> Choice {
        let mut histogram = Histogram::default();
        pauses.into_iter().for_each(|pause| histogram.add(s(pause)));
        choose(&histogram, None, &SETTINGS)
    }

    /// Each row is a test: pauses => idle, ready after and until (seconds), and the text.
    macro_rules! choices {
        ($($name:ident: $pauses:expr => $idle:expr, $ready:expr, $text:expr;)*) => {$(
            #[test]
            fn $name() {
                let choice = of($pauses);
                let ready = choice.ready.map(|ready| (ready.after.as_secs(), ready.until.as_secs()));
                assert_eq!((choice.idle, ready), (s($idle), $ready), "{choice:?}");
                assert_eq!(choice.why.to_string(), $text);
            }
        )*};
    }

    choices! {
        nothing_known_is_the_default: [] => 300, None, "the default: 0 pauses between calls were seen, 8 are needed";
        one_is_one: [60; 1] => 300, None, "the default: 1 pause between calls was seen, 8 are needed";
        seven_are_too_few: [60; 7] => 300, None, "the default: 7 pauses between calls were seen, 8 are needed";
        short_pauses_stay_short: [100; 20] => 121, None, "99 of 100 pauses were shorter than 1m 50s";
        the_least_time_holds: [1; 20] => 30, None, "99 of 100 pauses were shorter than 10s; the VM's limits bound the time";
        from_nothing_to_ten_minutes: (0..60).map(|n| n * 10) => 660, None, "99 of 100 pauses were shorter than 10m";
        hourly_timer_is_removed_and_prewarmed: [3600; 8] => 30, Some((3240, 4026)),
            "calls come 1h to 1h 1m after the last one";
        hours_are_bounded: (0..60).map(|n| 20 + (n % 8) * 1800) => 7200, None,
            "99 of 100 pauses were shorter than 3h 31m; the VM's limits bound the time";
        rare_pauses_are_mentioned: (0..20).map(|n| if n % 5 == 0 { 99_999 } else { 90 }) => 110, None,
            "99 of 100 pauses up to 4h were shorter than 1m 40s; 20 of 100 were longer than 4h";
        mostly_rare_is_the_default: (0..20).map(|n| if n % 3 == 0 { 60 } else { 99_999 }) => 300, None,
            "the default: 65 of 100 pauses were longer than 4h";
        even_ones_are_the_default: (0..63).map(|n| 150 + n * 226) => 300, None,
            "the default: a pause of any length is as likely as any other";
    }

    #[test]
    fn set_timeout_overrides_all() {
        let mut pauses = Histogram::default();
        (0..50).for_each(|_| pauses.add(s(3600)));
        let choice = choose(&pauses, Some(s(5)), &SETTINGS);
        assert_eq!((choice.idle, choice.ready, choice.why), (s(5), None, Reason::Set));
        assert_eq!(choice.why.by(), KeepAliveSource::Set);
    }

    #[test]
    fn a_start_before_the_call_has_to_pay() {
        // Between 15 minutes and an hour and a half: to be away for a seventh of that is not worth
        // a start.
        let choice = of((0..60).map(|n| 900 + (n % 10) * 500));
        assert_eq!(choice.ready, None, "{choice:?}");
        assert_eq!(choice.why.by(), KeepAliveSource::Adaptive);
    }
}
