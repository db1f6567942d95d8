//! The builder's settings: as an operator writes them ([`Settings`], section `builder:`), and
//! checked ([`Config`]). Holding a `Config` means that it is valid.

mod member;
mod registry;
mod settings;

pub use member::MemberConfig;
pub(crate) use registry::Registry;
pub use settings::{ImageTransfer, Settings};

use crate::{ceilings::Ceilings, engine::container::Limits, source::SourceLimits};
use epsilon_api::units::Bytes;
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
    pub(crate) hub_patience: Duration,
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
    pub(crate) shelf_size: Bytes,
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
            ("engine_timeout", s.engine_timeout),
            ("pull_timeout", s.pull_timeout),
            ("runtime_timeout", s.runtime_timeout),
            ("install_timeout", s.install_timeout),
            ("inspect_timeout", s.inspect_timeout),
            ("dockerfile_timeout", s.dockerfile_timeout),
            ("build_timeout", s.build_timeout),
            ("registry_timeout", s.registry_timeout),
            ("source_stall", s.source_stall),
        ];
        for (key, value) in positive {
            check(!value.is_zero(), key, &format!("{value:?}"), "it must be longer than 0")?;
        }
        check(s.builds > 0, "builds", "0", "at least one build must be allowed")?;
        // Node alone takes about 40 MiB; the engine refuses less than 6 MiB.
        for (key, value) in
            [("install_memory", s.install_memory), ("inspect_memory", s.inspect_memory)]
        {
            check(value >= Bytes::mib(64), key, &value.to_string(), "Node needs at least 64MiB")?;
        }
        for (key, value) in [("install_pids", s.install_pids), ("inspect_pids", s.inspect_pids)] {
            check(value >= 32, key, &value.to_string(), "Node needs at least 32")?;
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
            engine_timeout: s.engine_timeout,
            image_transfer: s.image_transfer,
            runtime_image: s.runtime_image,
            hub_patience: s.hub_patience,
            pull_timeout: s.pull_timeout,
            runtime_timeout: s.runtime_timeout,
            ca_bundle: existing("ca_bundle", s.ca_bundle)?.or_else(machine_bundle),
            npmrc: existing("npmrc", s.npmrc)?.or_else(own_npmrc),
            install_network: s.install_network,
            install_size: s.install_size,
            install: Limits {
                memory: s.install_memory,
                cpu: s.install_cpu,
                pids: s.install_pids,
                time: s.install_timeout,
            },
            inspect: Limits {
                memory: s.inspect_memory,
                cpu: s.inspect_cpu,
                pids: s.inspect_pids,
                time: s.inspect_timeout,
            },
            dockerfile_timeout: s.dockerfile_timeout,
            builds: s.builds,
            build_timeout: s.build_timeout,
            registry,
            cache_size: s.cache_size,
            shelf_size: s.shelf_size,
            source: SourceLimits {
                compressed: s.source_archive,
                unpacked: s.source_unpacked,
                file: s.source_file,
                files: s.source_files,
                stall: s.source_stall,
                ..SourceLimits::default()
            },
            ceilings: Ceilings {
                timeout: s.max_timeout,
                idle_timeout: s.max_idle_timeout,
                memory: s.max_memory,
                cpu: s.max_cpu,
                concurrency: s.max_concurrency,
                max_instances: s.max_instances,
                functions: s.max_functions,
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

#[cfg(test)]
mod tests {
    use super::*;
    use epsilon_api::units::MilliCores;

    fn read(yaml: &str) -> Result<Config, String> {
        let settings: Settings = serde_yaml::from_str(yaml).map_err(|e| e.to_string())?;
        Config::new(settings, Path::new("/data/builder")).map_err(|e| e.to_string())
    }

    #[test]
    fn nothing_has_to_be_set() {
        let config = read("{}").unwrap();
        assert_eq!(config.inspect.time, Duration::from_secs(20));
        assert!(config.registry.is_none() && config.member().is_none());
    }

    #[test]
    fn units_are_written_by_people() {
        let config = read("{inspect_timeout: 1m, install_memory: 1GiB, inspect_cpu: 0.5}").unwrap();
        assert_eq!(config.inspect.time, Duration::from_secs(60));
        assert_eq!(config.install.memory, Bytes::mib(1024));
        assert_eq!(config.inspect.cpu, MilliCores(500));
    }

    macro_rules! refused {
        ($($name:ident: $yaml:expr => $says:expr;)*) => {$(
            #[test]
            fn $name() {
                let err = read($yaml).unwrap_err();
                assert!(err.contains($says), "{err}");
            }
        )*};
    }

    refused! {
        unknown_key: "{regsitry: x}" => "regsitry";
        time_without_unit: "{inspect_timeout: 20}" => "not a duration";
        zero_time: "{inspect_timeout: 0s}" => "longer than 0";
        no_builds: "{builds: 0}" => "at least one";
        engine_elsewhere: "{engine: 'tcp://10.0.0.1:2375'}" => "on this machine";
        missing_bundle: "{ca_bundle: /nowhere/ca.crt}" => "does not exist";
        registry_with_scheme: "{registry: 'https://registry.example'}" => "without `https://`";
        registry_without_host: "{registry: shop}" => "host";
        fleet_without_a_token: "{gateways: 'http://10.0.0.4:8081'}" => "builder.token";
        fleet_that_is_no_url: "{gateways: '10.0.0.4', token_file: x}" => "URLs";
        tls_fleet_without_tls: "{gateways: 'https://10.0.0.4:8081', token_file: x}" => "needs `tls_certificate`";
        half_a_certificate: "{tls_key: x}" => "go together";
        no_connections: "{max_connections: 0}" => "at least one";
        password_without_registry: "{registry_user: ann, registry_password: x}" => "no other one";
        two_passwords: "{registry: 'registry.example', registry_user: ann, registry_password: x, \
                        registry_password_file: /dev/null}" => "either";
        missing_authority: "{registry: 'registry.example', registry_ca: /nowhere}" => "does not exist";
        authority_that_is_none: "{registry: 'registry.example', registry_ca: /etc/hostname}" => "PEM";
        no_images_kept: "{registry: 'registry.example', registry_keep_images: 0}" => "at least 1";
        images_without_a_tag_kept_for_hours: "{registry: 'registry.example', registry_keep_untagged: 1h}" => "whole days";
        password_alone: "{registry: 'registry.example', registry_password: x}" => "go together";
        image_that_is_a_path: "{runtime_image: ../x}" => "name of an image";
    }
}
