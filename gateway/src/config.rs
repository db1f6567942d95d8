//! The checked settings of the gateway ([`Config`]), composed of those of its areas. What an
//! operator writes is in `settings.rs` ([`Settings`]), explained in `config.default.yaml`; each area
//! checks its own section (`source/git/config.rs`, …).

pub use crate::call::version_addresses::Setting as VersionAddresses;
use crate::deploy::prebuilt::ceilings;
use crate::fleet::member::HealthPolicy;
use crate::invoke::retry::{MAX_TRIES, budget};
use crate::networks::Networks;
use crate::reconcile::retention::Keep;
use crate::source::git::config as git;
use crate::source::github::config as github;
use crate::traffic::config as traffic;
use epsilon_api::units::Bytes;
use epsilon_autoscaler::config as autoscale;
use epsilon_bootstrap::settings::invalid::{ConfigError, rule};
use epsilon_fleet_link::tls;
use epsilon_http_server::pace::PaceLimits;
use epsilon_placement::bounded_load::{Balance, CALLS_PER_CORE};
use limits::Limits;
pub use settings::Settings;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

pub(crate) mod connections;
pub(crate) mod defaults;
pub(crate) mod limits;
mod removed;
mod settings;
#[cfg(test)]
mod tests;

/// Checked settings. Holding one means that it is valid.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) control: SocketAddr,
    pub(crate) data_dir: PathBuf,
    /// In lower case.
    pub(crate) domain: Option<String>,
    /// Without a trailing slash.
    pub(crate) public_url: Option<String>,
    pub(crate) trusted_proxies: Networks,
    pub(crate) max_body: Bytes,
    pub(crate) max_source: Bytes,
    pub(crate) pace: PaceLimits,
    pub(crate) balance: Balance,
    pub(crate) version_addresses: VersionAddresses,
    pub(crate) max_tries: usize,
    pub(crate) retries: budget::Policy,
    pub(crate) health_policy: HealthPolicy,
    pub(crate) connection: epsilon_http_server::Limits,
    /// Without a trailing slash.
    pub(crate) control_url: Option<String>,
    pub(crate) tls: Option<tls::Files>,
    /// Those of `tls`, where the public listener speaks TLS.
    pub(crate) public_tls: Option<tls::Files>,
    pub(crate) keep: Keep,
    pub(crate) fetch_timeout: Duration,
    pub(crate) ceilings: ceilings::Ceilings,
    pub(crate) autoscale: autoscale::Config,
    pub(crate) traffic: traffic::Config,
    pub(crate) git: git::Config,
    pub(crate) hooks: github::Config,
    pub(crate) limits: Limits,
}

impl Config {
    /// Checks the settings. `admin.key`, `fleet.token` and `builder.token` are written to
    /// `data_dir`.
    ///
    /// # Errors
    /// When a setting is invalid; the error names the first one.
    pub fn new(settings: Settings, data_dir: impl Into<PathBuf>) -> Result<Self, ConfigError> {
        let connection = connections::limits(&settings)?;
        let (tls, public_tls) = connections::tls(&settings)?;
        let domain = settings.domain.map(|domain| domain.to_ascii_lowercase());
        rule(
            domain.as_deref().is_none_or(is_domain),
            "domain",
            "must be a host name such as `fn.example.org`, without a dot at its ends",
        )?;
        rule(
            (1.1..=10.0).contains(&settings.balance_factor),
            "balance_factor",
            "must be between 1.1 and 10",
        )?;
        Ok(Self {
            ceilings: ceilings::Ceilings::new(settings.ceilings),
            fetch_timeout: settings.fetch_timeout,
            keep: Keep { versions: settings.keep_versions, grace: settings.image_grace },
            version_addresses: settings.version_addresses,
            autoscale: autoscale::Config::new(settings.autoscale)?,
            traffic: traffic::Config::new(&settings.traffic),
            git: git::Config::new(settings.git, settings.max_source)?,
            hooks: github::Config::new(settings.hooks, settings.github)?,
            public_url: url("public_url", settings.public_url)?,
            control_url: url("control_url", settings.control_url)?,
            tls,
            public_tls,
            listen: settings.listen,
            control: settings.control,
            data_dir: data_dir.into(),
            domain,
            trusted_proxies: settings.trusted_proxies,
            max_body: settings.max_body,
            max_source: settings.max_source,
            pace: connection.pace,
            balance: Balance {
                factor: settings.balance_factor,
                calls_per_core: CALLS_PER_CORE,
                slow_start: settings.slow_start,
            },
            max_tries: MAX_TRIES,
            retries: budget::Policy::default(),
            health_policy: HealthPolicy::new(settings.slow_start),
            connection,
            limits: settings.limits,
        })
    }
}

fn is_domain(text: &str) -> bool {
    !text.is_empty()
        && text.split('.').all(|label| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

/// A URL without its trailing slash.
fn url(key: &'static str, written: Option<String>) -> Result<Option<String>, ConfigError> {
    let is_http = |url: &str| {
        let mut schemes = ["http://", "https://"].iter();
        schemes.any(|scheme| url.len() > scheme.len() && url.starts_with(scheme))
    };
    let good = written.as_deref().is_none_or(is_http);
    rule(good, key, "must start with `http://` or `https://`")?;
    Ok(written.map(|url| url.trim_end_matches('/').to_owned()))
}
