//! How the calls of one function are split among its versions: requests, stored form, answers. The
//! gateway's `call/version.rs` applies it to each call; the store stores it. [`slots`] is the
//! arithmetic.

pub mod slots;

use crate::ids::{FunctionName, VersionNumber};
use http::HeaderName;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use slots::Slots;
use std::{fmt, str::FromStr, time::Duration};

/// Versions of one split at most. Each has time series of its own in the metrics.
pub const MAX_VERSIONS: usize = 8;

/// How many of a hundred calls a version gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The version.
    pub version: VersionNumber,
    /// Its share, whole percents.
    #[cfg_attr(feature = "openapi", schema(maximum = 100))]
    pub percent: u8,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.version, self.percent)
    }
}

/// A text that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {rule}")]
pub struct InvalidTraffic {
    text: String,
    rule: &'static str,
}

impl InvalidTraffic {
    fn new(text: &str, rule: &'static str) -> Self {
        Self { text: text.chars().filter(|c| !c.is_control()).take(80).collect(), rule }
    }
}

impl FromStr for Share {
    type Err = InvalidTraffic;

    fn from_str(text: &str) -> Result<Self, InvalidTraffic> {
        let invalid =
            || InvalidTraffic::new(text, "a share such as `3=90`: a version and its percent");
        let (version, percent) = text.split_once('=').ok_or_else(invalid)?;
        let percent = percent.strip_suffix('%').unwrap_or(percent);
        let percent = percent.parse().ok().filter(|percent| *percent <= 100);
        Ok(Self {
            version: version.parse().map_err(|_| invalid())?,
            percent: percent.ok_or_else(invalid)?,
        })
    }
}

/// Shares as people write them: `3=90 4=10`.
pub fn text(shares: &[Share]) -> String {
    shares.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// What identifies a caller, so that it stays on one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// A cookie that the gateway sets: the caller's slot, 0 to 99.
    Cookie,
    /// The value of this header, such as a user's or a session's id.
    Header(HeaderName),
}

impl fmt::Display for Sticky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cookie => f.write_str("cookie"),
            Self::Header(name) => write!(f, "header:{name}"),
        }
    }
}

impl FromStr for Sticky {
    type Err = InvalidTraffic;

    fn from_str(text: &str) -> Result<Self, InvalidTraffic> {
        let invalid = || InvalidTraffic::new(text, "`cookie` or `header:NAME`");
        match text.split_once(':') {
            None if text == "cookie" => Ok(Self::Cookie),
            Some(("header", name)) => name.parse().map(Self::Header).map_err(|_| invalid()),
            _ => Err(invalid()),
        }
    }
}

impl Serialize for Sticky {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sticky {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// A share of calls, stored in hundredths of a percent. In JSON a number of percent: `0.5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = f64, minimum = 0, maximum = 100))]
pub struct Rate(u16);

impl Rate {
    /// All calls: no rate exceeds it.
    pub const ALL: Self = Self(10_000);

    /// Whole percents, at most 100.
    pub const fn percent(percent: u8) -> Self {
        Self(if percent > 100 { 10_000 } else { percent as u16 * 100 })
    }

    /// Whether `failed` of `calls` exceed this rate.
    pub fn is_exceeded_by(self, failed: u64, calls: u64) -> bool {
        failed.saturating_mul(10_000) > calls.saturating_mul(u64::from(self.0))
    }

    fn of_percents(percents: f64) -> Option<Self> {
        (0.0..=100.0).contains(&percents).then(|| Self((percents * 100.0).round() as u16))
    }

    fn percents(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.percents())
    }
}

impl FromStr for Rate {
    type Err = InvalidTraffic;

    fn from_str(text: &str) -> Result<Self, InvalidTraffic> {
        let number = text.strip_suffix('%').unwrap_or(text).parse().ok();
        let invalid = || InvalidTraffic::new(text, "a percentage such as `5%`, from 0 to 100");
        number.and_then(Self::of_percents).ok_or_else(invalid)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(self.percents())
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let percents = f64::deserialize(from)?;
        let invalid = || D::Error::custom(format_args!("{percents} is not between 0 and 100"));
        Self::of_percents(percents).ok_or_else(invalid)
    }
}

/// When a split is aborted: a version other than the stable one answers too often with a status of
/// 500 or above, or the platform does in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AbortRule {
    /// Error rate that must be exceeded.
    #[serde(rename = "abort_above_percent")]
    pub above: Rate,
    /// Window over which calls count, in milliseconds.
    #[serde(rename = "abort_window_ms")]
    pub window_ms: u64,
    /// Calls that the window must have: a few calls prove nothing.
    #[serde(rename = "abort_min_calls")]
    pub min_calls: u32,
}

impl AbortRule {
    /// Window over which calls count.
    pub fn window(&self) -> Duration {
        Duration::from_millis(self.window_ms)
    }

    /// Whether `failed` of `calls` break the rule.
    pub fn is_violated_by(&self, failed: u64, calls: u64) -> bool {
        calls >= u64::from(self.min_calls) && self.above.is_exceeded_by(failed, calls)
    }
}

/// A split in its stored form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// The version of each slot (hundredth of the calls).
    pub slots: Slots,
    /// Whether a caller stays on its version.
    #[serde(default)]
    pub sticky: Option<Sticky>,
    /// When it is aborted.
    #[serde(flatten)]
    pub abort: AbortRule,
}

/// Why a split was aborted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Aborted {
    /// When it was aborted.
    pub at: Timestamp,
    /// The version that failed.
    pub version: VersionNumber,
    /// Its calls within the window.
    pub calls: u64,
    /// Its failed calls within the window.
    pub failed: u64,
    /// Error rate that was allowed.
    pub limit: Rate,
}

impl fmt::Display for Aborted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, calls, failed, limit, .. } = self;
        write!(f, "{failed} of {calls} calls of version {version} failed; the limit is {limit}")
    }
}

/// Body of `POST /v1/functions/{name}/traffic`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TrafficRequest {
    /// The shares; together 100.
    pub shares: Vec<Share>,
    /// The version that gets all calls when the split is aborted. Default: that of the running
    /// split, else the oldest.
    #[serde(default)]
    pub stable: Option<VersionNumber>,
    /// What identifies a caller, so that it stays on its version: `cookie` or `header:NAME`.
    /// Default: callers do not stay.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, pattern = "^(cookie|header:.+)$"))]
    pub sticky: Option<Sticky>,
    /// Error rate of a version that aborts the split; 100 never does. Default:
    /// `gateway.traffic.abort_above`.
    #[serde(default)]
    pub abort_above_percent: Option<Rate>,
    /// Window over which calls count. Default: a minute.
    #[serde(default)]
    pub abort_window_ms: Option<u64>,
    /// Calls of a version before it is judged. Default: 20.
    #[serde(default)]
    pub abort_min_calls: Option<u32>,
}

/// Body of `POST /v1/functions/{name}/promote`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// The version that gets all calls; when absent, the one that is tried beside the stable one.
    #[serde(default)]
    pub version: Option<VersionNumber>,
}

/// How the calls of a function are routed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TrafficInfo {
    /// The function.
    pub function: FunctionName,
    /// The version that gets all calls without a split, and again after an abort.
    pub stable: VersionNumber,
    /// Share of each version, the stable version first.
    pub shares: Vec<VersionTraffic>,
    /// Terms of the running split; absent when one version serves all calls.
    #[serde(default)]
    pub split: Option<SplitInfo>,
    /// Why the last split was aborted automatically; absent after a later change.
    #[serde(default)]
    pub aborted: Option<Aborted>,
}

/// The terms of a split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SplitInfo {
    /// Since when these shares apply.
    pub since: Timestamp,
    /// What identifies a caller, so that it stays on its version.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, pattern = "^(cookie|header:.+)$"))]
    pub sticky: Option<Sticky>,
    /// When it is aborted.
    #[serde(flatten)]
    pub abort: AbortRule,
}

/// One version's part of the calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VersionTraffic {
    /// The version.
    pub version: VersionNumber,
    /// Its share.
    #[cfg_attr(feature = "openapi", schema(maximum = 100))]
    pub percent: u8,
    /// URL of this version alone.
    pub url: String,
    /// Its calls within the window, through the gateway that answers.
    pub calls: u64,
    /// Its failed calls within the window.
    pub failed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! read {
        ($($name:ident: $kind:ty, $text:expr => $want:expr;)*) => {$(
            #[test]
            fn $name() {
                let read = $text.parse::<$kind>().map(|it| it.to_string());
                assert_eq!(read.ok().as_deref(), $want);
            }
        )*};
    }

    read! {
        a_share: Share, "3=90" => Some("3=90");
        a_share_with_its_sign: Share, "3=90%" => Some("3=90");
        a_share_of_nothing: Share, "3=0" => Some("3=0");
        more_than_all: Share, "3=101" => None;
        half_a_percent_of_calls: Share, "3=0.5" => None;
        no_version: Share, "=90" => None;
        version_zero: Share, "0=90" => None;
        no_percent: Share, "3" => None;
        a_cookie: Sticky, "cookie" => Some("cookie");
        a_header: Sticky, "header:X-User" => Some("header:x-user");
        a_header_without_a_name: Sticky, "header:" => None;
        a_header_that_cannot_be: Sticky, "header:a b" => None;
        a_cookie_with_a_name: Sticky, "cookie:x" => None;
        a_rate: Rate, "5%" => Some("5%");
        a_rate_without_its_sign: Rate, "0.25" => Some("0.25%");
        a_rate_above_all: Rate, "101%" => None;
        a_rate_below_none: Rate, "-1" => None;
        not_a_number: Rate, "NaN" => None;
    }

    /// The form stored in databases: a change breaks older gateways.
    #[test]
    fn a_stored_split_is_read_again() {
        let stored = r#"{"slots":[[3,90],[4,10]],"sticky":"header:x-user","abort_above_percent":5.0,"abort_window_ms":60000,"abort_min_calls":20}"#;
        let split: Split = serde_json::from_str(stored).unwrap();
        assert_eq!(text(&split.slots.shares()), "3=90 4=10");
        assert_eq!(serde_json::to_string(&split).unwrap(), stored);
        for invalid in ["[[3,90]]", "[[3,90],[4,11]]", "[]", "[[0,100]]", "[[3,200]]"] {
            let text = stored.replace("[[3,90],[4,10]]", invalid);
            assert!(serde_json::from_str::<Split>(&text).is_err(), "{invalid}");
        }
    }

    #[test]
    fn a_version_is_judged_by_enough_calls() {
        let rule = AbortRule { above: Rate::percent(5), window_ms: 60_000, min_calls: 20 };
        for (failed, calls, broken) in [
            (19, 19, false),
            (1, 20, false), // just the limit
            (2, 20, true),
            (5, 100, false),
            (6, 100, true),
            (0, u64::MAX, false),
        ] {
            assert_eq!(rule.is_violated_by(failed, calls), broken, "{failed} of {calls}");
        }
        let never = AbortRule { above: Rate::ALL, ..rule };
        assert!(!never.is_violated_by(100, 100));
        let none = AbortRule { above: Rate::percent(0), ..rule };
        assert!(none.is_violated_by(1, 100_000));
    }
}
