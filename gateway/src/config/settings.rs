//! The settings of the gateway as an operator writes them, over `config.default.yaml`, where each
//! key is explained. Areas with a mapping of their own declare and check it themselves.

use super::defaults::DEFAULTS;
use super::limits::Limits;
use super::removed::REMOVED;
use crate::call::version_addresses::Setting as VersionAddresses;
use crate::deploy::prebuilt::ceilings;
use crate::networks::Networks;
use crate::source::git::config as git;
use crate::source::github;
use crate::traffic::config as traffic;
use epsilon_api::ids::ProjectName;
use epsilon_api::serde_text;
use epsilon_api::units::Bytes;
use epsilon_autoscaler::config as autoscale;
use epsilon_bootstrap::settings::{Defaults, Removed, Section};
use serde::Deserialize;
use std::{collections::BTreeMap, net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

/// The section `gateway:`.
#[allow(missing_docs, reason = "`config.default.yaml` explains each key")]
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub listen: SocketAddr,
    pub control: SocketAddr,
    pub domain: Option<String>,
    pub public_url: Option<String>,
    pub trusted_proxies: Networks,
    #[serde(deserialize_with = "serde_text::text")]
    pub max_body: Bytes,
    #[serde(deserialize_with = "serde_text::duration")]
    pub body_timeout: Duration,
    #[serde(deserialize_with = "serde_text::text")]
    pub max_source: Bytes,
    pub max_connections: usize,
    pub max_connections_per_ip: Option<usize>,
    #[serde(deserialize_with = "serde_text::duration")]
    pub header_timeout: Duration,
    #[serde(deserialize_with = "serde_text::duration")]
    pub idle_timeout: Duration,
    pub control_url: Option<String>,
    pub tls_certificate: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub tls_authority: Option<PathBuf>,
    pub listen_tls: bool,
    pub balance_factor: f64,
    #[serde(deserialize_with = "serde_text::duration")]
    pub slow_start: Duration,
    pub keep_versions: NonZeroU32,
    pub version_addresses: VersionAddresses,
    #[serde(deserialize_with = "serde_text::duration")]
    pub image_grace: Duration,
    #[serde(deserialize_with = "serde_text::duration")]
    pub fetch_timeout: Duration,
    pub ceilings: ceilings::Settings,
    pub autoscale: autoscale::Settings,
    pub traffic: traffic::Settings,
    pub git: git::Settings,
    pub hooks: github::config::Settings,
    pub github: BTreeMap<ProjectName, github::project::Settings>,
    /// No settings: a test of the whole gateway may need other numbers.
    #[doc(hidden)]
    #[serde(skip)]
    pub limits: Limits,
}

impl Section for Settings {
    const DEFAULTS: Defaults = DEFAULTS;
    const REMOVED: &'static [Removed] = REMOVED;
    const PROGRAM: &'static [&'static str] = &["drain_grace", "store"];
}

impl Default for Settings {
    fn default() -> Self {
        Self::defaults()
    }
}
