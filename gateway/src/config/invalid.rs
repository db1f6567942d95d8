//! The error for a setting that cannot be used. It is below the settings of every area, so that
//! none of them imports the root `config`.

use std::borrow::Cow;

/// An invalid setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`gateway.{key}`: {rule}")]
pub struct ConfigError {
    /// The key of the setting.
    pub key: &'static str,
    /// The rule that it violates.
    pub rule: Cow<'static, str>,
}

/// The rule for one key, unless it holds.
pub(crate) fn rule(holds: bool, key: &'static str, rule: &'static str) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError { key, rule: rule.into() }) }
}
