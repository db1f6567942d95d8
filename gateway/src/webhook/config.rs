//! What all webhooks together may do and take ([`Settings`], `gateway.hooks` in the settings file), and what is left
//! when it was checked ([`Config`]), with the projects' own in it.

use super::{
    host::Hosts,
    project::{self, Hook},
};
use crate::config::ConfigError;
use epsilon_api::{
    ids::ProjectName,
    units::Bytes,
    written::{duration, text},
};
use serde::Deserialize;
use std::{collections::BTreeMap, time::Duration};

/// The mapping `gateway.hooks`, as written. Every key may be left out.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Hosts that repositories are fetched from and statuses sent to, by https, as long as their addresses are in the
    /// Internet. Default `[github.com, api.github.com]`.
    pub hosts: Vec<String>,
    /// Hosts that may also have addresses in your own network, and be spoken to by http. Default: none.
    pub private_hosts: Vec<String>,
    /// Largest payload of a delivery (413 beyond it). Default `25MiB`: the hub sends nothing larger.
    #[serde(deserialize_with = "text")]
    pub max_payload: Bytes,
    /// Memory for payloads that are read at one moment; then senders are told to come again (503). Default `64MiB`: they
    /// are read before anybody knows who sent them, and are some 10 KiB as a rule.
    #[serde(deserialize_with = "text")]
    pub payload_memory: Bytes,
    /// Longest that a payload may take to come in. Default `8s`: the hub gives up after 10.
    #[serde(deserialize_with = "duration")]
    pub payload_timeout: Duration,
    /// How long deliveries are remembered. One that comes again within it is refused, and so is a push that is older.
    /// Default `7days`: longer than the hub offers to send a delivery again.
    #[serde(deserialize_with = "duration")]
    pub remember: Duration,
    /// Deployments of webhooks at one moment, of all projects together; more wait. Default 4: a repository with a hook for
    /// each of many projects does not fill the disk and the builders' queue by one push.
    pub at_once: usize,
    /// Most that a fetched commit may take on the disk, packed. Default `512MiB`.
    #[serde(deserialize_with = "text")]
    pub max_fetch: Bytes,
    /// Longest that fetching a commit may take. Default `2m`.
    #[serde(deserialize_with = "duration")]
    pub fetch_timeout: Duration,
    /// Longest wait for the address of a host, and for a connection to the hub's API. Default `5s`.
    #[serde(deserialize_with = "duration")]
    pub connect_timeout: Duration,
    /// Longest that the hub may take to take one status. Default `10s`.
    #[serde(deserialize_with = "duration")]
    pub status_timeout: Duration,
    /// How often a status is tried; between two times there are seconds. Default 3: a status that is lost is a pity and
    /// no more.
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

/// See [`Settings`].
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
            let told = refused(text);
            assert!(told.starts_with(want), "{told}");
        }
    }
}
