//! Settings of all webhooks together ([`Settings`], `gateway.hooks` in the settings file), and
//! their checked form ([`Config`]), which includes those of the projects.

use super::allowed_hosts::Hosts;
use super::project;
use super::project::Hook;
use crate::config::invalid::ConfigError;
use epsilon_api::ids::ProjectName;
use epsilon_api::serde_text::{duration, text};
use epsilon_api::units::Bytes;
use serde::Deserialize;
use std::{collections::BTreeMap, time::Duration};

/// The mapping `gateway.hooks`. Every key may be left out.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Hosts from which repositories are fetched and to which statuses are sent, by https, as long
    /// as their addresses are public. Default `[github.com, api.github.com]`.
    pub hosts: Vec<String>,
    /// Hosts that may also have private addresses and use http. Default: none.
    pub private_hosts: Vec<String>,
    /// Largest payload of a delivery (413 beyond it). Default `25MiB`: GitHub sends nothing larger.
    #[serde(deserialize_with = "text")]
    pub max_payload: Bytes,
    /// Memory for all payloads that are being received; beyond it deliveries are refused with 503.
    /// Default `64MiB`: payloads are read before their sender is authenticated, and usually have
    /// some 10 KiB.
    #[serde(deserialize_with = "text")]
    pub payload_memory: Bytes,
    /// Longest time to receive a payload. Default `8s`: GitHub gives up after 10.
    #[serde(deserialize_with = "duration")]
    pub payload_timeout: Duration,
    /// How long deliveries are remembered. A delivery repeated within it is refused, and so is a
    /// push that is older. Default `7days`: longer than GitHub offers to redeliver.
    #[serde(deserialize_with = "duration")]
    pub remember: Duration,
    /// Concurrent deployments of webhooks, of all projects together; more wait. Default 4: a
    /// repository with webhooks for many projects does not fill the disk and the builders' queue
    /// with one push.
    pub at_once: usize,
    /// Largest fetched commit on disk, packed. Default `512MiB`.
    #[serde(deserialize_with = "text")]
    pub max_fetch: Bytes,
    /// Longest time to fetch a commit. Default `2m`.
    #[serde(deserialize_with = "duration")]
    pub fetch_timeout: Duration,
    /// Longest time to resolve a host, and to connect to GitHub's API. Default `5s`.
    #[serde(deserialize_with = "duration")]
    pub connect_timeout: Duration,
    /// Longest time for GitHub to accept one status. Default `10s`.
    #[serde(deserialize_with = "duration")]
    pub status_timeout: Duration,
    /// Attempts to send a status, some seconds apart. Default 3: a lost status does no harm.
    pub status_tries: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hosts: vec!["github.com".into(), "api.github.com".into()],
            private_hosts: Vec::new(),
            max_payload: Bytes::mib(25),
            payload_memory: Bytes::mib(64),
            payload_timeout: Duration::from_secs(8),
            remember: Duration::from_secs(7 * 24 * 3600),
            at_once: 4,
            max_fetch: Bytes::mib(512),
            fetch_timeout: Duration::from_secs(2 * 60),
            connect_timeout: Duration::from_secs(5),
            status_timeout: Duration::from_secs(10),
            status_tries: 3,
        }
    }
}

/// Checked settings of all webhooks.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) hooks: BTreeMap<ProjectName, Hook>,
    pub(crate) limits: Limits,
}

/// The limits of [`Settings`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_payload: Bytes,
    pub(crate) payload_memory: Bytes,
    pub(crate) payload_timeout: Duration,
    pub(crate) remember: Duration,
    pub(crate) at_once: usize,
    pub(crate) max_fetch: Bytes,
    pub(crate) fetch: Duration,
    pub(crate) connect: Duration,
    pub(crate) status: Duration,
    pub(crate) status_tries: u32,
}

impl Config {
    pub(crate) fn new(
        settings: Settings,
        projects: BTreeMap<ProjectName, project::Settings>,
    ) -> Result<Self, ConfigError> {
        let rule = |holds: bool, key, rule: &'static str| {
            if holds { Ok(()) } else { Err(ConfigError { key, rule: rule.into() }) }
        };
        for (key, value) in [
            ("hooks.payload_timeout", settings.payload_timeout),
            ("hooks.remember", settings.remember),
            ("hooks.fetch_timeout", settings.fetch_timeout),
            ("hooks.connect_timeout", settings.connect_timeout),
            ("hooks.status_timeout", settings.status_timeout),
        ] {
            rule(!value.is_zero(), key, "must be longer than `0s`")?;
        }
        rule(settings.max_payload.get() > 0, "hooks.max_payload", "must be at least 1 byte")?;
        rule(
            settings.payload_memory >= settings.max_payload,
            "hooks.payload_memory",
            "must be at least as large as `max_payload`",
        )?;
        rule(
            (1..=10).contains(&settings.status_tries),
            "hooks.status_tries",
            "must be between 1 and 10",
        )?;
        rule(
            (1..=1000).contains(&settings.at_once),
            "hooks.at_once",
            "must be between 1 and 1000",
        )?;
        let hosts = Hosts::new(settings.hosts, settings.private_hosts);
        let hooks = projects.into_iter().map(|(project, settings)| {
            Ok((project.clone(), Hook::new(project, settings, &hosts)?))
        });
        Ok(Self {
            hooks: hooks.collect::<Result<_, _>>()?,
            limits: Limits {
                max_payload: settings.max_payload,
                payload_memory: settings.payload_memory,
                payload_timeout: settings.payload_timeout,
                remember: settings.remember,
                at_once: settings.at_once,
                max_fetch: settings.max_fetch,
                fetch: settings.fetch_timeout,
                connect: settings.connect_timeout,
                status: settings.status_timeout,
                status_tries: settings.status_tries,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let settings: Settings = serde_json::from_str(text).unwrap();
        Config::new(settings, BTreeMap::new()).unwrap_err().to_string()
    }

    #[test]
    fn nothing_written_works() {
        let config = Config::new(Settings::default(), BTreeMap::new()).unwrap();
        assert!(config.hooks.is_empty());
        assert_eq!(config.limits.max_payload, Bytes::mib(25));
    }

    #[test]
    fn what_cannot_work_is_named() {
        for (text, want) in [
            (r#"{"max_payload":"65MiB"}"#, "`gateway.hooks.payload_memory`: must"),
            (r#"{"max_payload":"0B"}"#, "`gateway.hooks.max_payload`: must"),
            (r#"{"at_once":0}"#, "`gateway.hooks.at_once`: must"),
            (r#"{"status_tries":0}"#, "`gateway.hooks.status_tries`: must"),
            (r#"{"remember":"0s"}"#, "`gateway.hooks.remember`: must"),
            (r#"{"fetch_timeout":"0s"}"#, "`gateway.hooks.fetch_timeout`: must"),
        ] {
            let message = refused(text);
            assert!(message.starts_with(want), "{message}");
        }
    }
}
