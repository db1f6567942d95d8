//! Settings of splits as an operator writes them ([`Settings`], `gateway.traffic` in the settings
//! file), and in checked form ([`Config`]). A request for a split may override all of the rule.

use crate::config::defaults::DEFAULTS;
use epsilon_api::serde_text;
use epsilon_api::traffic::{AbortRule, Rate};
use serde::Deserialize;
use std::time::Duration;

/// The mapping `gateway.traffic`.
#[allow(missing_docs, reason = "`config.default.yaml` explains each key")]
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    #[serde(deserialize_with = "serde_text::text")]
    pub abort_above: Rate,
}

impl Default for Settings {
    fn default() -> Self {
        DEFAULTS.of("traffic")
    }
}

/// Checked settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    /// When a split ends automatically.
    pub(crate) abort: AbortRule,
}

/// Window of the calls that are counted: older calls say nothing about the present.
const WINDOW_MS: u64 = 60_000;
/// Calls of a version within the window before it is judged: with fewer, a single failed call would
/// exceed the default limit.
const MIN_CALLS: u32 = 20;
/// Limits of the window: a far shorter one contains no calls, a far longer one is no longer recent.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60 * 60);

impl Config {
    pub(crate) fn new(settings: &Settings) -> Self {
        let above = settings.abort_above;
        Self { abort: AbortRule { above, window_ms: WINDOW_MS, min_calls: MIN_CALLS } }
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
    fn settings_are_read() {
        let config = |text: &str| {
            DEFAULTS
                .read("traffic", text)
                .map(|settings| Config::new(&settings))
                .map_err(|err| err.to_string())
        };
        let rule = config("{}").unwrap().abort;
        assert_eq!(
            (rule.above.to_string(), rule.window_ms, rule.min_calls),
            ("5%".into(), 60_000, 20)
        );
        assert!(is_sound(&rule));
        let rule = config("{abort_above: 0.5%}").unwrap().abort;
        assert_eq!(rule.above.to_string(), "0.5%");
        for odd in ["{abort_above: 101%}", "{abort: 1}"] {
            assert!(config(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_rule_without_calls_or_time_judges_nothing() {
        let rule = Config::new(&Settings::default()).abort;
        for window_ms in [0, 999, 3_600_001] {
            assert!(!is_sound(&AbortRule { window_ms, ..rule }), "{window_ms}");
        }
        assert!(!is_sound(&AbortRule { min_calls: 0, ..rule }));
    }
}
