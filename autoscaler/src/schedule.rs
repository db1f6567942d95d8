//! Minimums for known peaks: windows of local time with a minimum number of VMs. Pure; the time is
//! passed in. Daylight saving time is handled: a window is two wall-clock times, converted in its
//! zone day by day.
//!
//! When clocks are set forward, a time that does not exist is converted as if there were no change.
//! When they are set back and a time occurs twice, a window begins at the first and ends at the
//! second: a minimum may last an hour too long, but is never missing.

use jiff::{
    SignedDuration, Timestamp, ToSpan,
    civil::{Date, Time, Weekday},
    tz::TimeZone,
};
use serde::Deserialize;
use std::{fmt, time::Duration};

/// One window as configured.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSettings {
    /// `mon-fri`, `sat,sun`, `mon,wed-fri`, `daily`. Default `daily`. The days on which the window
    /// begins.
    #[serde(default)]
    pub days: Option<String>,
    /// `08:00`: when the VMs must be ready.
    pub from: String,
    /// `18:00`; a time not after `from` means the next day. `24:00` is midnight.
    pub to: String,
    /// Time zone: an IANA name such as `Europe/Berlin`, or `UTC`.
    pub zone: String,
    /// Minimum number of VMs.
    pub at_least: u32,
}

/// One window, checked.
#[derive(Clone, Debug)]
pub struct Window {
    days: [bool; 7],
    from: Time,
    to: Time,
    zone: TimeZone,
    at_least: u32,
    /// As configured, for people.
    text: String,
}

/// A minimum that applies now, and its window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtLeast {
    /// Minimum number of VMs.
    pub vms: u32,
    /// The window as configured.
    pub window: String,
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

impl WindowSettings {
    /// Checks the window; the error says what is wrong.
    pub(super) fn check(&self) -> Result<Window, String> {
        let days = days(self.days.as_deref().unwrap_or("daily"))?;
        let (from, to) = (time(&self.from)?, time(&self.to)?);
        let zone = TimeZone::get(&self.zone).map_err(|_| {
            format!("`{}` is not a time zone such as `Europe/Berlin` or `UTC`", self.zone)
        })?;
        if self.at_least == 0 {
            return Err("`at_least` must be at least 1".to_owned());
        }
        Ok(Window { days, from, to, zone, at_least: self.at_least, text: self.to_string() })
    }
}

impl fmt::Display for WindowSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = self.days.as_deref().unwrap_or("daily");
        write!(f, "{days} {}–{} {}", self.from, self.to, self.zone)
    }
}

impl Window {
    /// Whether the window applies at `now`, if it begins earlier by `ahead`.
    fn holds(&self, now: Timestamp, ahead: Duration) -> bool {
        let today = now.to_zoned(self.zone.clone()).date();
        // It may have begun yesterday, or begin tomorrow within `ahead`.
        let days = [today.checked_sub(1.day()), Ok(today), today.checked_add(1.day())];
        days.into_iter().flatten().any(|day| self.holds_from(day, now, ahead).unwrap_or(false))
    }

    fn holds_from(&self, day: Date, now: Timestamp, ahead: Duration) -> Result<bool, jiff::Error> {
        if !self.days[weekday(day.weekday())] {
            return Ok(false);
        }
        let last = if self.to > self.from { day } else { day.checked_add(1.day())? };
        let begins = self.zone.to_ambiguous_zoned(day.to_datetime(self.from)).compatible()?;
        let ends = self.zone.to_ambiguous_zoned(last.to_datetime(self.to)).later()?;
        let ahead = SignedDuration::try_from(ahead).unwrap_or(SignedDuration::ZERO);
        Ok(begins.timestamp().checked_sub(ahead)? <= now && now < ends.timestamp())
    }
}

/// The largest minimum that applies at `now`, if each window begins earlier by `ahead`.
pub fn at_least(windows: &[Window], now: Timestamp, ahead: Duration) -> Option<AtLeast> {
    windows
        .iter()
        .filter(|window| window.holds(now, ahead))
        .max_by_key(|window| window.at_least)
        .map(|window| AtLeast { vms: window.at_least, window: window.text.clone() })
}

fn weekday(day: Weekday) -> usize {
    usize::from(day.to_monday_zero_offset().unsigned_abs())
}

fn days(text: &str) -> Result<[bool; 7], String> {
    let wrong = || format!("`{text}` is not a list of days such as `mon-fri` or `sat,sun`");
    let index = |name: &str| {
        DAYS.iter().position(|day| name.trim().eq_ignore_ascii_case(day)).ok_or_else(wrong)
    };
    if text.trim().eq_ignore_ascii_case("daily") {
        return Ok([true; 7]);
    }
    let mut set = [false; 7];
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (index(first)?, index(last)?),
            None => (index(part)?, index(part)?),
        };
        // `sat-mon` wraps around the end of the week.
        let length = (last + 7 - first) % 7;
        for day in 0..=length {
            set[(first + day) % 7] = true;
        }
    }
    Ok(set)
}

fn time(text: &str) -> Result<Time, String> {
    let wrong = || format!("`{text}` is not a time of day such as `08:00`");
    let (hour, minute) = text.split_once(':').ok_or_else(wrong)?;
    let number = |digits: &str| {
        let two = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse::<i8>().ok().filter(|_| two).ok_or_else(wrong)
    };
    match (number(hour)?, number(minute)?) {
        (24, 0) => Ok(Time::midnight()),
        (hour, minute) => Time::new(hour, minute, 0, 0).map_err(|_| wrong()),
    }
}

#[cfg(test)]
mod tests;
