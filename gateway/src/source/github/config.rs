//! Settings of all webhooks together ([`Settings`], `gateway.hooks` in the settings file), and
//! their checked form ([`Config`]), which includes those of the projects.

use super::allowed_hosts::Hosts;
use super::project;
use super::project::Hook;
use crate::config::defaults::DEFAULTS;
use epsilon_api::ids::ProjectName;
use epsilon_api::units::Bytes;
use epsilon_bootstrap::settings::invalid::ConfigError;
use serde::Deserialize;
use std::{collections::BTreeMap, time::Duration};

/// The mapping `gateway.hooks`.
#[allow(missing_docs, reason = "`config.default.yaml` explains each key")]
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub hosts: Vec<String>,
    pub private_hosts: Vec<String>,
    /// No settings: a test of the whole gateway may need other numbers.
    #[doc(hidden)]
    #[serde(skip)]
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        DEFAULTS.of("hooks")
    }
}

/// What is the same for every operator.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Largest payload of a delivery (413 beyond it): GitHub sends nothing larger.
    pub max_payload: Bytes,
    /// Memory for all payloads that are being received; beyond it deliveries get 503. Payloads are
    /// read before their sender is authenticated, and usually have some 10 KiB.
    pub payload_memory: Bytes,
    /// Longest time to receive a payload: GitHub gives up after 10 s.
    pub payload_timeout: Duration,
    /// How long deliveries are remembered: longer than GitHub offers to redeliver. A delivery
    /// repeated within it is refused, and so is a push that is older.
    pub remember: Duration,
    /// Concurrent deployments of webhooks, of all projects together; more wait. A repository with
    /// webhooks for many projects does not fill the disk and the builders' queue with one push.
    pub at_once: usize,
    /// Largest fetched commit on disk, packed.
    pub max_fetch: Bytes,
    /// Longest time to fetch a commit, without its history.
    pub fetch: Duration,
    /// Longest time to resolve a host, and to connect to GitHub's API.
    pub connect: Duration,
    /// Longest time for GitHub to accept one status.
    pub status: Duration,
    /// Attempts to send a status, some seconds apart: a lost status does no harm.
    pub status_tries: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_payload: Bytes::mib(25),
            payload_memory: Bytes::mib(64),
            payload_timeout: Duration::from_secs(8),
            remember: Duration::from_secs(7 * 24 * 3600),
            at_once: 4,
            max_fetch: Bytes::mib(512),
            fetch: Duration::from_secs(2 * 60),
            connect: Duration::from_secs(5),
            status: Duration::from_secs(10),
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

impl Config {
    pub(crate) fn new(
        settings: Settings,
        projects: BTreeMap<ProjectName, project::Settings>,
    ) -> Result<Self, ConfigError> {
        let hosts = Hosts::new(settings.hosts, settings.private_hosts);
        let hooks = projects.into_iter().map(|(project, settings)| {
            Ok((project.clone(), Hook::new(project, settings, &hosts)?))
        });
        Ok(Self { hooks: hooks.collect::<Result<_, _>>()?, limits: settings.limits })
    }
}
