//! The settings of the agent as an operator writes them, over `config.default.yaml`, where each key
//! is explained.

use super::removed::REMOVED;
use crate::engine::limits::Seccomp;
use epsilon_api::ids::VmId;
use epsilon_api::serde_text;
use epsilon_api::units::Bytes;
use epsilon_bootstrap::settings::{Defaults, Removed, Section};
use serde::Deserialize;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// The section `vm_agent:`.
#[allow(missing_docs, reason = "`config.default.yaml` explains each key")]
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub id: Option<VmId>,
    pub engine_socket: Option<PathBuf>,
    pub engine_runtime: Option<String>,
    #[serde(deserialize_with = "serde_text::duration")]
    pub pull_timeout: Duration,
    pub registry: Option<String>,
    pub registry_user: Option<String>,
    pub registry_password_file: Option<PathBuf>,
    pub registry_docker_config: Option<PathBuf>,
    #[serde(deserialize_with = "serde_text::duration")]
    pub start_timeout: Duration,
    #[serde(deserialize_with = "serde_text::some_text")]
    pub memory: Option<Bytes>,
    pub starts_at_once: Option<usize>,
    pub cells_min: Option<u32>,
    pub cells_max: u32,
    #[serde(deserialize_with = "serde_text::duration")]
    pub queue_wait: Duration,
    #[serde(deserialize_with = "serde_text::duration")]
    pub instance_idle: Duration,
    #[serde(deserialize_with = "serde_text::duration")]
    pub freeze_after: Duration,
    pub pids_limit: u32,
    #[serde(deserialize_with = "serde_text::text")]
    pub tmp_size: Bytes,
    pub user_ids: String,
    pub seccomp: Seccomp,
    #[serde(deserialize_with = "serde_text::text")]
    pub log_size: Bytes,
    pub disk_limit: u8,
    #[serde(deserialize_with = "serde_text::duration")]
    pub disk_look: Duration,
    #[serde(deserialize_with = "serde_text::text")]
    pub layers_size: Bytes,
    pub layer_cache: Option<PathBuf>,
    pub dangerous_registry_plain_http: bool,
    #[serde(deserialize_with = "serde_text::duration")]
    pub remove_timeout: Duration,
    pub dangerous_allow_metadata: bool,
    pub closed_networks: String,
    pub open_addresses: String,
    pub gateways: Option<String>,
    pub token_file: Option<PathBuf>,
    pub listen: SocketAddr,
    pub metrics: Option<SocketAddr>,
    pub metrics_key_file: Option<PathBuf>,
    pub advertise: Option<String>,
    pub tls_certificate: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub tls_authority: Option<PathBuf>,
    #[serde(deserialize_with = "serde_text::duration")]
    pub drain_grace: Duration,
}

impl Section for Settings {
    const DEFAULTS: Defaults = Defaults::new("vm_agent", include_str!("../../config.default.yaml"));
    const REMOVED: &'static [Removed] = REMOVED;
}

impl Default for Settings {
    fn default() -> Self {
        Self::defaults()
    }
}
