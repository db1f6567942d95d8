//! The checked settings of the builder ([`Config`]): holding one means that it is valid. What an
//! operator writes is in `settings.rs` ([`Settings`]), explained in `config.default.yaml`; the
//! fixed limits are in `limits.rs`.

mod limits;
mod member;
mod registry;
mod removed;
mod settings;
#[cfg(test)]
mod tests;

pub use limits::ImageTransfer;
pub use member::MemberConfig;
pub(crate) use registry::Registry;
pub use settings::Settings;

use crate::{ceilings::Ceilings, engine::container::Limits, source::SourceLimits};
use epsilon_api::units::{Bytes, MilliCores};
use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

/// A setting with an unusable value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`builder.{key}` is `{value}`: {rule}")]
pub struct ConfigError {
    /// The key of the setting.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

/// Checked settings of the builder.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) data: PathBuf,
    pub(crate) engine: PathBuf,
    pub(crate) engine_timeout: Duration,
    pub(crate) image_transfer: ImageTransfer,
    pub(crate) runtime_image: Option<String>,
    pub(crate) registry_wait: Duration,
    pub(crate) pull_timeout: Duration,
    pub(crate) runtime_timeout: Duration,
    pub(crate) ca_bundle: Option<PathBuf>,
    pub(crate) npmrc: Option<PathBuf>,
    pub(crate) install_network: Option<String>,
    pub(crate) install_size: Bytes,
    pub(crate) install: Limits,
    pub(crate) inspect: Limits,
    pub(crate) dockerfile_timeout: Duration,
    pub(crate) builds: usize,
    pub(crate) build_timeout: Duration,
    pub(crate) registry: Option<Registry>,
    pub(crate) cache_size: Bytes,
    pub(crate) agent_cache_size: Bytes,
    pub(crate) source: SourceLimits,
    pub(crate) ceilings: Ceilings,
    member: Option<MemberConfig>,
}

/// Bundles of trusted certificates: Debian and Ubuntu, then Fedora.
const CA_BUNDLES: [&str; 2] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

impl Config {
    /// Checks settings. `data` is the builder's own folder, `DATA/builder`.
    ///
    /// # Errors
    /// The first setting with an unusable value.
    pub fn new(settings: Settings, data: &Path) -> Result<Self, ConfigError> {
        let mut s = settings;
        let registry = registry::read(&mut s)?;
        let positive = [
            ("runtime_timeout", s.runtime_timeout),
            ("registry_timeout", s.registry_timeout),
            ("install_timeout", s.install_timeout),
            ("inspect_timeout", s.inspect_timeout),
            ("dockerfile_timeout", s.dockerfile_timeout),
        ];
        for (key, value) in positive {
            check(!value.is_zero(), key, &format!("{value:?}"), "it must be longer than 0")?;
        }
        for (key, value) in
            [("install_timeout", s.install_timeout), ("dockerfile_timeout", s.dockerfile_timeout)]
        {
            let fits = value <= limits::BUILD_TIMEOUT;
            check(fits, key, &format!("{value:?}"), "a whole build has 30 minutes")?;
        }
        check(s.builds > 0, "builds", "0", "at least one build must be allowed")?;
        // Node alone takes about 40 MiB; the engine refuses less than 6 MiB.
        for (key, value) in
            [("install_memory", s.install_memory), ("inspect_memory", s.inspect_memory)]
        {
            check(value >= Bytes::mib(64), key, &value.to_string(), "Node needs at least 64MiB")?;
        }
        if let Some(image) = &s.runtime_image {
            check(
                crate::image::reference::is_reference(image),
                "runtime_image",
                image,
                "it must be the name of an image",
            )?;
        }
        if let Some(network) = &s.install_network {
            check(
                crate::image::reference::is_reference(network),
                "install_network",
                network,
                "it must be the name of a network",
            )?;
        }
        let member = member::read(&s, data)?;
        Ok(Self {
            member,
            data: data.to_owned(),
            engine: socket(s.engine)?,
            engine_timeout: limits::ENGINE_TIMEOUT,
            image_transfer: s.limits.image_transfer,
            runtime_image: s.runtime_image,
            registry_wait: limits::REGISTRY_WAIT,
            pull_timeout: s.limits.pull_timeout,
            runtime_timeout: s.runtime_timeout,
            ca_bundle: existing("ca_bundle", s.ca_bundle)?.or_else(machine_bundle),
            npmrc: existing("npmrc", s.npmrc)?.or_else(own_npmrc),
            install_network: s.install_network,
            install_size: s.install_size,
            install: Limits {
                memory: s.install_memory,
                cpu: s.install_cpu,
                pids: s.limits.install_pids,
                time: s.install_timeout,
            },
            inspect: Limits {
                memory: s.inspect_memory,
                cpu: MilliCores(limits::INSPECT_MILLICORES),
                pids: limits::INSPECT_PIDS,
                time: s.inspect_timeout,
            },
            dockerfile_timeout: s.dockerfile_timeout,
            builds: s.builds,
            build_timeout: limits::BUILD_TIMEOUT,
            registry,
            cache_size: s.cache_size,
            agent_cache_size: Bytes(s.cache_size.get() / limits::AGENT_CACHE_PART),
            source: SourceLimits {
                compressed: s.source_archive,
                unpacked: s.source_unpacked,
                ..SourceLimits::default()
            },
            ceilings: Ceilings {
                timeout: s.max_timeout,
                memory: s.max_memory,
                cpu: s.max_cpu,
                max_instances: s.max_instances,
                ..Ceilings::default()
            },
        })
    }

    /// Where layers of functions are cached for an agent on this machine.
    pub fn layer_cache(&self) -> PathBuf {
        self.data.join("shelf")
    }

    /// Settings of fleet membership, if a fleet is configured.
    pub fn member(&self) -> Option<&MemberConfig> {
        self.member.as_ref()
    }
}

fn check(
    holds: bool,
    key: &'static str,
    value: &str,
    rule: &'static str,
) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError { key, value: value.to_owned(), rule }) }
}

fn socket(setting: Option<String>) -> Result<PathBuf, ConfigError> {
    let text = setting
        .or_else(|| env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty()))
        .unwrap_or_else(|| "unix:///var/run/docker.sock".into());
    let path = text.strip_prefix("unix://").unwrap_or(&text);
    let rule = "the engine must be on this machine, as `unix:///path`: folders are mounted into its \
                containers";
    check(path.starts_with('/'), "engine", &text, rule)?;
    Ok(path.into())
}

fn existing(key: &'static str, path: Option<PathBuf>) -> Result<Option<PathBuf>, ConfigError> {
    if let Some(path) = &path {
        check(path.is_file(), key, &path.to_string_lossy(), "the file does not exist")?;
    }
    Ok(path)
}

fn machine_bundle() -> Option<PathBuf> {
    ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"]
        .iter()
        .filter_map(env::var_os)
        .map(PathBuf::from)
        .chain(CA_BUNDLES.iter().map(PathBuf::from))
        .find(|path| path.is_absolute() && path.is_file())
}

fn own_npmrc() -> Option<PathBuf> {
    let home = env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(PathBuf::from(home).join(".npmrc")).filter(|path| path.is_absolute() && path.is_file())
}
