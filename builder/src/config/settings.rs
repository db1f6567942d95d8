//! The builder's settings as an operator writes them, over `config.default.yaml`, where each key is
//! explained. `config.rs` checks them.

use super::limits::Limits;
use super::removed::REMOVED;
use epsilon_api::redacted::Secret;
use epsilon_api::serde_text;
use epsilon_api::units::{Bytes, MilliCores};
use epsilon_bootstrap::settings::{Defaults, Removed, Section};
use serde::{Deserialize, Deserializer};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// The section `builder:`.
#[allow(missing_docs, reason = "`config.default.yaml` explains each key")]
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub engine: Option<String>,
    pub runtime_image: Option<String>,
    #[serde(deserialize_with = "serde_text::duration")]
    pub runtime_timeout: Duration,
    pub ca_bundle: Option<PathBuf>,
    pub npmrc: Option<PathBuf>,
    pub install_network: Option<String>,
    #[serde(deserialize_with = "serde_text::text")]
    pub install_memory: Bytes,
    #[serde(deserialize_with = "serde_text::text")]
    pub install_size: Bytes,
    #[serde(deserialize_with = "serde_text::cores")]
    pub install_cpu: MilliCores,
    #[serde(deserialize_with = "serde_text::duration")]
    pub install_timeout: Duration,
    #[serde(deserialize_with = "serde_text::text")]
    pub inspect_memory: Bytes,
    #[serde(deserialize_with = "serde_text::duration")]
    pub inspect_timeout: Duration,
    #[serde(deserialize_with = "serde_text::duration")]
    pub dockerfile_timeout: Duration,
    pub builds: usize,
    pub registry: Option<String>,
    pub registry_user: Option<String>,
    #[serde(deserialize_with = "secret")]
    pub registry_password: Option<Secret<String>>,
    pub registry_password_file: Option<PathBuf>,
    pub registry_docker_config: Option<PathBuf>,
    pub registry_ca: Option<PathBuf>,
    pub dangerous_registry_plain_http: bool,
    pub registry_keep_images: u32,
    #[serde(deserialize_with = "serde_text::duration")]
    pub registry_timeout: Duration,
    #[serde(deserialize_with = "serde_text::text")]
    pub cache_size: Bytes,
    #[serde(deserialize_with = "serde_text::text")]
    pub source_archive: Bytes,
    #[serde(deserialize_with = "serde_text::text")]
    pub source_unpacked: Bytes,
    #[serde(deserialize_with = "serde_text::duration")]
    pub max_timeout: Duration,
    #[serde(deserialize_with = "serde_text::text")]
    pub max_memory: Bytes,
    #[serde(deserialize_with = "serde_text::cores")]
    pub max_cpu: MilliCores,
    pub max_instances: u32,
    pub gateways: Option<String>,
    pub token_file: Option<PathBuf>,
    pub listen: SocketAddr,
    pub advertise: Option<String>,
    pub tls_certificate: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub tls_authority: Option<PathBuf>,
    pub metrics: Option<SocketAddr>,
    pub metrics_key_file: Option<PathBuf>,
    #[serde(deserialize_with = "serde_text::duration")]
    pub drain_grace: Duration,
    /// No settings: a test of the whole builder may need other numbers.
    #[doc(hidden)]
    #[serde(skip)]
    pub limits: Limits,
}

impl Section for Settings {
    const DEFAULTS: Defaults = Defaults::new("builder", include_str!("../../config.default.yaml"));
    const REMOVED: &'static [Removed] = REMOVED;
}

impl Default for Settings {
    fn default() -> Self {
        Self::defaults()
    }
}

fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret<String>>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(Secret::new))
}
