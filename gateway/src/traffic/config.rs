//! Settings of splits as an operator writes them ([`Settings`], `gateway.traffic` in the settings
//! file), and in checked form ([`Config`]). A request for a split may override them.

use crate::config::invalid::ConfigError;
use epsilon_api::serde_text;
use epsilon_api::traffic::{AbortRule, Rate};
use serde::Deserialize;
use std::time::Duration;

/// The mapping `gateway.traffic`. Every key may be left out.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// A split ends automatically when more than this part of a version's calls fails (5xx of the
    /// function, or of the platform in its place); the stable version is not judged. `100%`
    /// disables this. Default `5%`: well above the failures of a healthy function, and exceeded
    /// within seconds by a broken version.
    #[serde(deserialize_with = "serde_text::text")]
    pub abort_above: Rate,
    /// Time window of the calls that count for that. Default `1m`: older calls say nothing about
    /// the present.
    #[serde(deserialize_with = "serde_text::duration")]
    pub abort_window: Duration,
    /// Calls of a version within the window before it is judged. Default 20: with fewer, a single
    /// failed call would exceed the default limit.
    pub abort_min_calls: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            abort_above: Rate::percent(5),
            abort_window: Duration::from_secs(60),
            abort_min_calls: 20,
        }
    }
}

/// Checked settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    /// When a split ends automatically.
    pub(crate) abort: AbortRule,
}

/// Limits of the window: a far shorter one contains no calls, a far longer one is no longer recent.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60 * 60);

impl Config {
    pub(crate) fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let window_ms = u64::try_from(settings.abort_window.as_millis()).unwrap_or(u64::MAX);
        let abort = AbortRule {
            above: settings.abort_above,
            window_ms,
            min_calls: settings.abort_min_calls,
        };
        if !is_sound(&abort) {
            return Err(ConfigError { key: "traffic.abort_window", rule: RULE.into() });
        }
        Ok(Self { abort })
    }
}

/// The rule for a window and a call count.
pub(crate) const RULE: &str = "must be between `1s` and `1h`, and `abort_min_calls` at least 1";

/// Whether a rule can be used to judge versions.
pub(crate) fn is_sound(rule: &AbortRule) -> bool {
    (SHORTEST..=LONGEST).contains(&rule.window()) && rule.min_calls > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_checked() {
        let config = |text: &str| {
            let settings: Settings = serde_json::from_str(text).map_err(|err| err.to_string())?;
            Config::new(&settings).map_err(|err| err.to_string())
        };
        let rule = config("{}").unwrap().abort;
        assert_eq!(
            (rule.above.to_string(), rule.window_ms, rule.min_calls),
            ("5%".into(), 60_000, 20)
        );
        let rule = config(r#"{"abort_above":"0.5%","abort_window":"10s","abort_min_calls":3}"#);
        assert_eq!(rule.unwrap().abort.above.to_string(), "0.5%");
        for odd in [
            r#"{"abort_above":"101%"}"#,
            r#"{"abort_window":"0s"}"#,
            r#"{"abort_window":"2h"}"#,
            r#"{"abort_min_calls":0}"#,
            r#"{"abort":1}"#,
        ] {
            assert!(config(odd).is_err(), "{odd}");
        }
    }
}
