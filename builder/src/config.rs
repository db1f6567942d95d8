//! The builder's settings: as an operator writes them ([`Settings`], section `builder:`), and checked
//! ([`Config`]). Holding a `Config` means that it is valid.

mod member;
mod registry;

pub use member::MemberConfig;
pub(crate) use registry::Registry;

use crate::{engine::container::Limits, manifest::Ceilings, source::SourceLimits};
use epsilon_api::{
    redacted::Secret,
    units::{Bytes, MilliCores},
};
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{
    env,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

/// The section `builder:` of the settings file. Every key may be left out; each may also be given as
/// `EPSILON_BUILDER_<KEY>`. Times are written `30s`, sizes `100MiB`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The engine's socket. Default: `DOCKER_HOST`, else `unix:///var/run/docker.sock`.
    pub engine: Option<String>,
    /// The longest wait for the engine to begin an answer. Default 2 min: loading a large image on a
    /// slow disk says nothing until it is done.
    #[serde(deserialize_with = "duration")]
    pub engine_timeout: Duration,
    /// How images get into the engine, at first; the ways after it are tried when it fails. Default
    /// `lacking`: only the layers that the engine lacks. `whole`: all layers. `commit`: through a
    /// container.
    pub image_transfer: Way,
    /// The image that Node functions are based on; it must have `node` 24 and `npm`. Default: chosen by
    /// the builder.
    pub runtime_image: Option<String>,
    /// How long a public hub may take to be heard of before the base is made from the distribution's
    /// packages instead. Default 8 s; `0s` asks no hub.
    #[serde(deserialize_with = "duration")]
    pub hub_patience: Duration,
    /// The longest that pulling an image may take. Default 5 min.
    #[serde(deserialize_with = "duration")]
    pub pull_timeout: Duration,
    /// The longest that making the runtime base may take. Default 20 min, for a slow mirror.
    #[serde(deserialize_with = "duration")]
    pub runtime_timeout: Duration,
    /// Certificates that installs trust besides the usual ones. Default: `SSL_CERT_FILE` or
    /// `NODE_EXTRA_CA_CERTS`, else the machine's own bundle.
    pub ca_bundle: Option<PathBuf>,
    /// npm's settings for installs. Default: `~/.npmrc`, where there is one. Install scripts never
    /// see it.
    pub npmrc: Option<PathBuf>,
    /// The engine's network that installs and Dockerfiles use, as it is. Default: one of the builder's own,
    /// without a way to 169.254.169.254 (the cloud's metadata, with the machine's own credentials), which
    /// needs root and iptables.
    pub install_network: Option<String>,
    /// Memory of one install. Default 2 GiB.
    #[serde(deserialize_with = "size")]
    pub install_memory: Bytes,
    /// Most that the packages of one project may take on disk. Default 2 GiB.
    #[serde(deserialize_with = "size")]
    pub install_size: Bytes,
    /// Processor cores of one install. Default 2.
    #[serde(deserialize_with = "cores")]
    pub install_cpu: MilliCores,
    /// Processes and threads of one install. Default 512.
    pub install_pids: u32,
    /// The longest that one install may take. Default 5 min.
    #[serde(deserialize_with = "duration")]
    pub install_timeout: Duration,
    /// Memory of one look at a project's exports. Default 512 MiB.
    #[serde(deserialize_with = "size")]
    pub inspect_memory: Bytes,
    /// Processor cores of one look. Default 2: loading is on the way of every deploy.
    #[serde(deserialize_with = "cores")]
    pub inspect_cpu: MilliCores,
    /// Processes and threads of one look. Default 128.
    pub inspect_pids: u32,
    /// The longest that a project may take to load. Default 20 s.
    #[serde(deserialize_with = "duration")]
    pub inspect_timeout: Duration,
    /// The longest that a project's Dockerfile may take. Default 10 min.
    #[serde(deserialize_with = "duration")]
    pub dockerfile_timeout: Duration,
    /// Builds at once; others wait. Default 2.
    pub builds: usize,
    /// The longest that one build may take, with its wait for a turn. Default 30 min.
    #[serde(deserialize_with = "duration")]
    pub build_timeout: Duration,
    /// Where images go: `registry.example/prefix`. Default: this machine's engine.
    pub registry: Option<String>,
    /// User at the registry. Not needed for ECR, which is met with the machine's role.
    pub registry_user: Option<String>,
    /// Password or token at the registry.
    #[serde(deserialize_with = "secret")]
    pub registry_password: Option<Secret<String>>,
    /// A file with the password or token. Read for each push, so that it can be replaced at any time.
    pub registry_password_file: Option<PathBuf>,
    /// A `config.json` with logins, as `docker login` writes it (`auths` only; helpers are not run). Read for
    /// each push.
    pub registry_docker_config: Option<PathBuf>,
    /// Certificates (PEM) that the registry's own may be signed by, besides those that this machine trusts.
    pub registry_ca: Option<PathBuf>,
    /// Speaks plain HTTP with the registry: whoever is on the way reads the password and changes images.
    /// Default `false`. A registry on this machine is met so anyway.
    pub dangerous_registry_plain_http: bool,
    /// Images that a repository keeps which the builder makes in ECR; the newest ones. Default `50`: versions
    /// to go back to. Other registries keep what they are told to.
    pub registry_keep_images: u32,
    /// How long an image without a tag stays in such a repository. Default 14 days; at least one.
    #[serde(deserialize_with = "duration")]
    pub registry_keep_untagged: Duration,
    /// The longest that one blob may take to or from the registry. Default 5 min.
    #[serde(deserialize_with = "duration")]
    pub registry_timeout: Duration,
    /// Most that kept dependencies and layers may take on disk. Default 10 GiB; the ones used least
    /// recently go first.
    #[serde(deserialize_with = "size")]
    pub cache_size: Bytes,
    /// Largest archive that may be pushed. Default 100 MiB.
    #[serde(deserialize_with = "size")]
    pub source_archive: Bytes,
    /// Largest project after unpacking. Default 512 MiB.
    #[serde(deserialize_with = "size")]
    pub source_unpacked: Bytes,
    /// Largest file of a project. Default 256 MiB.
    #[serde(deserialize_with = "size")]
    pub source_file: Bytes,
    /// Most files of a project. Default 20,000.
    pub source_files: usize,
    /// Longest silence in an upload. Default 60 s.
    #[serde(deserialize_with = "duration")]
    pub source_stall: Duration,
    /// Largest `timeout` of a function. Default 15 min.
    #[serde(deserialize_with = "duration")]
    pub max_timeout: Duration,
    /// Largest `idleTimeout` of a function. Default 24 h.
    #[serde(deserialize_with = "duration")]
    pub max_idle_timeout: Duration,
    /// Largest `memory` of a function. Default 8 GiB.
    #[serde(deserialize_with = "size")]
    pub max_memory: Bytes,
    /// Largest `cpu` of a function. Default 16.
    #[serde(deserialize_with = "cores")]
    pub max_cpu: MilliCores,
    /// Largest `concurrency` of a function. Default 1,000.
    pub max_concurrency: u32,
    /// Largest `maxInstances` of a function. Default 1,000.
    pub max_instances: u32,
    /// Most functions of one project. Default 200.
    pub max_functions: usize,
    /// Control addresses of the fleet's gateways (`http://10.0.0.4:8081`), with commas between them. This setting and
    /// those below are for the program `epsilon-builder`; `epsilon up` has its builder in the same process.
    pub gateways: Option<String>,
    /// The file with the fleet's token: a copy of the gateway's `DATA/fleet.token`.
    pub token_file: Option<PathBuf>,
    /// Where gateways reach this builder. Default `0.0.0.0:8083`: they come from other machines, and nobody gets in
    /// without a pass that a gateway of the fleet signed.
    pub listen: SocketAddr,
    /// What the fleet is told instead of the address that reaches the gateway: `host` or `host:port`.
    pub advertise: Option<String>,
    /// This builder's certificate, in PEM, to speak TLS. Set together with `tls_key` and `tls_authority`. Default:
    /// none, plain HTTP.
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, in PEM.
    pub tls_key: Option<PathBuf>,
    /// Who signed the certificates of the fleet, in PEM.
    pub tls_authority: Option<PathBuf>,
    /// Builds that may wait for their turn; a gateway takes more to another builder. Default 16.
    pub builds_waiting: usize,
    /// Connections at once. Default 64: each build has one.
    pub max_connections: usize,
    /// Longest wait for a TLS handshake and a request's head. Default 10 s.
    #[serde(deserialize_with = "duration")]
    pub head_timeout: Duration,
    /// How long a gateway's connection may stay without a request. Default 60 s: longer than gateways keep one.
    #[serde(deserialize_with = "duration")]
    pub idle_timeout: Duration,
    /// How long builds may go on after the first signal to end. Default 90 s: most builds take seconds, and
    /// process managers get impatient after some two minutes.
    #[serde(deserialize_with = "duration")]
    pub drain_grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let (source, ceilings) = (SourceLimits::default(), Ceilings::default());
        Self {
            engine: None,
            engine_timeout: Duration::from_secs(120),
            image_transfer: Way::Lacking,
            runtime_image: None,
            hub_patience: Duration::from_secs(8),
            pull_timeout: Duration::from_secs(300),
            runtime_timeout: Duration::from_secs(1200),
            ca_bundle: None,
            npmrc: None,
            install_network: None,
            install_memory: Bytes::mib(2048),
            install_size: Bytes::mib(2048),
            install_cpu: MilliCores(2000),
            install_pids: 512,
            install_timeout: Duration::from_secs(300),
            inspect_memory: Bytes::mib(512),
            inspect_cpu: MilliCores(2000),
            inspect_pids: 128,
            inspect_timeout: Duration::from_secs(20),
            dockerfile_timeout: Duration::from_secs(600),
            builds: 2,
            build_timeout: Duration::from_secs(1800),
            registry: None,
            registry_user: None,
            registry_password: None,
            registry_password_file: None,
            registry_docker_config: None,
            registry_ca: None,
            dangerous_registry_plain_http: false,
            registry_keep_images: 50,
            registry_keep_untagged: Duration::from_secs(14 * 24 * 3600),
            registry_timeout: Duration::from_secs(300),
            cache_size: Bytes::mib(10 << 10),
            source_archive: source.compressed,
            source_unpacked: source.unpacked,
            source_file: source.file,
            source_files: source.files,
            source_stall: source.stall,
            max_timeout: ceilings.timeout,
            max_idle_timeout: ceilings.idle_timeout,
            max_memory: ceilings.memory,
            max_cpu: ceilings.cpu,
            max_concurrency: ceilings.concurrency,
            max_instances: ceilings.max_instances,
            max_functions: ceilings.functions,
            gateways: None,
            token_file: None,
            listen: (Ipv4Addr::UNSPECIFIED, 8083).into(),
            advertise: None,
            tls_certificate: None,
            tls_key: None,
            tls_authority: None,
            builds_waiting: 16,
            max_connections: 64,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            drain_grace: Duration::from_secs(90),
        }
    }
}

/// A way for images into the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// An archive with the layers that the engine lacks. Engines with the classic store take that.
    Lacking,
    /// An archive with all layers.
    Whole,
    /// Layers unpacked into a container, which is then committed.
    Commit,
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`builder.{key}` is `{value}`: {rule}")]
pub struct ConfigError {
    /// Which setting.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// What it has to be.
    pub rule: &'static str,
}

/// Settings of the builder, checked and ready to use.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) data: PathBuf,
    pub(crate) engine: PathBuf,
    pub(crate) engine_timeout: Duration,
    pub(crate) image_transfer: Way,
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
    pub(crate) source: SourceLimits,
    pub(crate) ceilings: Ceilings,
    member: Option<MemberConfig>,
}

/// Where distributions keep the bundle of trusted certificates: Debian and Ubuntu, then Fedora.
const CA_BUNDLES: [&str; 2] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

impl Config {
    /// Checks settings. `data` is the builder's own folder, `DATA/builder`.
    ///
    /// # Errors
    /// The first setting that cannot be used.
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
            check(!value.is_zero(), key, &format!("{value:?}"), "it has to be longer than 0")?;
        }
        check(s.builds > 0, "builds", "0", "at least one build has to be possible")?;
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
                crate::engine::is_reference(image),
                "runtime_image",
                image,
                "it has to be an image's name",
            )?;
        }
        if let Some(network) = &s.install_network {
            check(
                crate::engine::is_reference(network),
                "install_network",
                network,
                "it has to be a network's name",
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

    /// How it belongs to a fleet, where one is named.
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
    let rule = "the engine has to be on this machine, as `unix:///path`: folders are mounted into its \
                containers";
    check(path.starts_with('/'), "engine", &text, rule)?;
    Ok(path.into())
}

fn existing(key: &'static str, path: Option<PathBuf>) -> Result<Option<PathBuf>, ConfigError> {
    if let Some(path) = &path {
        check(path.is_file(), key, &path.to_string_lossy(), "there is no such file")?;
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

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text)
        .map_err(|_| D::Error::custom(format!("`{text}` is not a time; write for example `30s`")))
}

fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret<String>>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(Secret::new))
}

fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

fn cores<'de, D: Deserializer<'de>>(from: D) -> Result<MilliCores, D::Error> {
    let cores = f64::deserialize(from)?;
    MilliCores::from_cores(cores)
        .ok_or_else(|| D::Error::custom(format!("`{cores}` is not a number of cores")))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        time_without_unit: "{inspect_timeout: 20}" => "not a time";
        zero_time: "{inspect_timeout: 0s}" => "longer than 0";
        no_builds: "{builds: 0}" => "at least one";
        engine_elsewhere: "{engine: 'tcp://10.0.0.1:2375'}" => "on this machine";
        missing_bundle: "{ca_bundle: /nowhere/ca.crt}" => "no such file";
        registry_with_scheme: "{registry: 'https://registry.example'}" => "without `https://`";
        registry_without_host: "{registry: shop}" => "host";
        fleet_without_a_token: "{gateways: 'http://10.0.0.4:8081'}" => "fleet.token";
        fleet_that_is_no_url: "{gateways: '10.0.0.4', token_file: x}" => "URLs";
        tls_fleet_without_tls: "{gateways: 'https://10.0.0.4:8081', token_file: x}" => "needs `tls_certificate`";
        half_a_certificate: "{tls_key: x}" => "go together";
        no_connections: "{max_connections: 0}" => "at least one";
        password_without_registry: "{registry_user: ann, registry_password: x}" => "no other one";
        two_passwords: "{registry: 'registry.example', registry_user: ann, registry_password: x, \
                        registry_password_file: /dev/null}" => "either";
        missing_authority: "{registry: 'registry.example', registry_ca: /nowhere}" => "no such file";
        authority_that_is_none: "{registry: 'registry.example', registry_ca: /etc/hostname}" => "PEM";
        no_images_kept: "{registry: 'registry.example', registry_keep_images: 0}" => "at least one";
        images_without_a_tag_kept_for_hours: "{registry: 'registry.example', registry_keep_untagged: 1h}" => "whole days";
        password_alone: "{registry: 'registry.example', registry_password: x}" => "go together";
        image_that_is_a_path: "{runtime_image: ../x}" => "image's name";
    }
}
