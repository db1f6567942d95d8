//! A setting of the agent that cannot be used. Below the settings of every area.

use epsilon_fleet_link::membership::BadGateway;
use epsilon_fleet_link::tls::TlsError;

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The value is below its minimum.
    #[error("`vm_agent.{key}` must be at least {least}")]
    TooSmall {
        /// The setting, without its section.
        key: &'static str,
        /// The smallest valid value.
        least: &'static str,
    },
    /// The value is above its maximum.
    #[error("`vm_agent.{key}` must be at most {most}")]
    TooLarge {
        /// The setting, without its section.
        key: &'static str,
        /// The largest valid value.
        most: &'static str,
    },
    /// The credentials for a registry are incomplete.
    #[error("`vm_agent.{}` ({}): {}", .0.key, .0.value, .0.rule)]
    Registry(#[from] epsilon_registry::Invalid),
    /// The list of gateways is invalid.
    #[error("`vm_agent.gateways`")]
    Gateways(#[from] BadGateway),
    /// Gateways without the fleet's token.
    #[error(
        "`vm_agent.token_file` has to name the file with the fleet's token (a gateway's `DATA/fleet.token`)"
    )]
    NoToken,
    /// The range of user ids is invalid.
    #[error(
        "`vm_agent.user_ids` (`{0}`) must be `FIRST-LAST`, both from 1000 to 2147483646, or `shared`"
    )]
    UserIds(String),
    /// A list of networks or addresses is invalid.
    #[error("`vm_agent.{key}`: `{text}` {rule}")]
    Reach {
        /// The setting, without its section.
        key: &'static str,
        /// The part that cannot be parsed.
        text: String,
        /// What it has to be.
        rule: &'static str,
    },
    /// The settings of TLS are incomplete.
    #[error("the settings `vm_agent.tls_…` cannot be used")]
    Tls(#[from] TlsError),
}
