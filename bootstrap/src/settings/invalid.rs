//! The error for a setting of the gateway that cannot be used. It is below the settings of every
//! area, of which some are crates of their own.

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
///
/// # Errors
/// If it does not.
pub fn rule(holds: bool, key: &'static str, rule: &'static str) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError { key, rule: rule.into() }) }
}
