//! The builder's settings as an operator writes them. `config.rs` checks them.

use crate::{ceilings::Ceilings, source::SourceLimits};
use epsilon_api::redacted::Secret;
use epsilon_api::serde_text;
use epsilon_api::units::{Bytes, MilliCores};
use serde::{Deserialize, Deserializer};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// The section `builder:` of the settings file. Every key may be left out; each may also be given
/// as `EPSILON_BUILDER_<KEY>`. Times are written `30s`, sizes `100MiB`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The engine's socket. Default: `DOCKER_HOST`, else `unix:///var/run/docker.sock`.
    pub engine: Option<String>,
    /// Longest wait for the engine to begin an answer. Default 2 min: loading a large image on a
    /// slow disk is silent until it is done.
    #[serde(deserialize_with = "serde_text::duration")]
    pub engine_timeout: Duration,
    /// How images get into the engine; when it fails, the methods after it are tried. Default
    /// `lacking`: only the layers that the engine lacks. `whole`: all layers. `commit`: through a
    /// container.
    pub image_transfer: ImageTransfer,
    /// The image that Node functions are based on; it must have `node` 24 and `npm`. Default:
    /// chosen by the builder.
    pub runtime_image: Option<String>,
    /// How long to wait for a public registry before the base is made from the distribution's
    /// packages instead. Default 8 s; `0s` asks no registry.
    #[serde(deserialize_with = "serde_text::duration")]
    pub hub_patience: Duration,
    /// Longest time for pulling an image. Default 5 min.
    #[serde(deserialize_with = "serde_text::duration")]
    pub pull_timeout: Duration,
    /// Longest time for making the runtime base. Default 20 min, for a slow mirror. Each step has a
    /// share of it and is cancelled after that: half where packages of the distribution or Node are
    /// fetched, a tenth for npm's packages, a quarter for work on this machine only.
    #[serde(deserialize_with = "serde_text::duration")]
    pub runtime_timeout: Duration,
    /// Certificates that installs trust in addition. Default: `SSL_CERT_FILE` or
    /// `NODE_EXTRA_CA_CERTS`, else the machine's own bundle.
    pub ca_bundle: Option<PathBuf>,
    /// npm's settings for installs: registries, tokens, proxies, trust; no project's `.npmrc`
    /// changes one of them. Default: `~/.npmrc`, if it exists. Install scripts never see it.
    pub npmrc: Option<PathBuf>,
    /// The engine's network for installs and Dockerfiles, used as it is. Default: a network of the
    /// builder's own without access to 169.254.169.254 (the cloud's metadata with the machine's
    /// credentials), which needs root and iptables.
    pub install_network: Option<String>,
    /// Memory of one install, of a `build` command, and of one step of a Dockerfile. Default 2 GiB.
    #[serde(deserialize_with = "serde_text::text")]
    pub install_memory: Bytes,
    /// Disk space for the packages of one project and what its `build` command makes; also what one
    /// step of a Dockerfile may write. Default 2 GiB.
    #[serde(deserialize_with = "serde_text::text")]
    pub install_size: Bytes,
    /// CPUs of one install, of a `build` command, and of one step of a Dockerfile. Default 2.
    #[serde(deserialize_with = "serde_text::cores")]
    pub install_cpu: MilliCores,
    /// Processes and threads of one install, of a `build` command, and of the steps of a
    /// Dockerfile. Default 512.
    pub install_pids: u32,
    /// Longest time for one install. Default 5 min.
    #[serde(deserialize_with = "serde_text::duration")]
    pub install_timeout: Duration,
    /// Memory for inspecting a project's exports. Default 512 MiB.
    #[serde(deserialize_with = "serde_text::text")]
    pub inspect_memory: Bytes,
    /// CPUs for inspecting. Default 2: every deployment waits for it.
    #[serde(deserialize_with = "serde_text::cores")]
    pub inspect_cpu: MilliCores,
    /// Processes and threads for inspecting. Default 128.
    pub inspect_pids: u32,
    /// Longest time for loading a project. Default 20 s.
    #[serde(deserialize_with = "serde_text::duration")]
    pub inspect_timeout: Duration,
    /// Longest time for a project's Dockerfile. Default 10 min.
    #[serde(deserialize_with = "serde_text::duration")]
    pub dockerfile_timeout: Duration,
    /// Builds at once; others wait. Default 2.
    pub builds: usize,
    /// Longest time for one build, its wait for a slot included. Default 30 min.
    #[serde(deserialize_with = "serde_text::duration")]
    pub build_timeout: Duration,
    /// Registry that images are pushed to: `registry.example/prefix`. Default: this machine's
    /// engine.
    pub registry: Option<String>,
    /// User at the registry. Not needed for ECR, where the machine's role is used.
    pub registry_user: Option<String>,
    /// Password or token at the registry.
    #[serde(deserialize_with = "secret")]
    pub registry_password: Option<Secret<String>>,
    /// A file with the password or token. Read for each push, so that it can be replaced at any
    /// time.
    pub registry_password_file: Option<PathBuf>,
    /// A `config.json` with logins, as `docker login` writes it (`auths` only; helpers are not
    /// run). Read for each push.
    pub registry_docker_config: Option<PathBuf>,
    /// Authorities (PEM) that the registry's certificate may be signed by, in addition to those
    /// that this machine trusts.
    pub registry_ca: Option<PathBuf>,
    /// Plain HTTP to the registry: anyone on the network path can read the password and change
    /// images. Default `false`. A registry on this machine is always reached by plain HTTP.
    pub dangerous_registry_plain_http: bool,
    /// Newest images that the builder's ECR repositories keep. Default `50`: versions for a
    /// rollback. Other registries keep what they are configured to.
    pub registry_keep_images: u32,
    /// How long an untagged image stays in such a repository. Default 14 days; at least one.
    #[serde(deserialize_with = "serde_text::duration")]
    pub registry_keep_untagged: Duration,
    /// Longest time for transferring one blob to or from the registry. Default 5 min.
    #[serde(deserialize_with = "serde_text::duration")]
    pub registry_timeout: Duration,
    /// Disk space for cached dependencies, layers and npm caches together, checked when a build
    /// ends and every 5 min. Default 10 GiB; the least recently used entries are removed first, but
    /// none that a build uses. Small results (exports, built images) have a sixteenth of that for
    /// themselves.
    #[serde(deserialize_with = "serde_text::text")]
    pub cache_size: Bytes,
    /// Disk space for layers that are cached for this machine's own agent; those of dependencies
    /// share it with `cache_size`. Default 2 GiB: code layers are small. The oldest entries are
    /// removed first; an agent takes missing ones from the engine, which is slower.
    #[serde(deserialize_with = "serde_text::text")]
    pub shelf_size: Bytes,
    /// Largest archive that may be pushed. Default 100 MiB.
    #[serde(deserialize_with = "serde_text::text")]
    pub source_archive: Bytes,
    /// Largest project after unpacking. Default 512 MiB.
    #[serde(deserialize_with = "serde_text::text")]
    pub source_unpacked: Bytes,
    /// Largest file of a project. Default 256 MiB.
    #[serde(deserialize_with = "serde_text::text")]
    pub source_file: Bytes,
    /// Most files of a project. Default 20,000.
    pub source_files: usize,
    /// Longest silence in an upload. Default 60 s.
    #[serde(deserialize_with = "serde_text::duration")]
    pub source_stall: Duration,
    /// Largest `timeout` of a function. Default 15 min.
    #[serde(deserialize_with = "serde_text::duration")]
    pub max_timeout: Duration,
    /// Largest `idleTimeout` of a function. Default 24 h.
    #[serde(deserialize_with = "serde_text::duration")]
    pub max_idle_timeout: Duration,
    /// Largest `memory` of a function. Default 8 GiB.
    #[serde(deserialize_with = "serde_text::text")]
    pub max_memory: Bytes,
    /// Largest `cpu` of a function. Default 16.
    #[serde(deserialize_with = "serde_text::cores")]
    pub max_cpu: MilliCores,
    /// Largest `concurrency` of a function. Default 1,000.
    pub max_concurrency: u32,
    /// Largest `maxInstances` of a function. Default 1,000.
    pub max_instances: u32,
    /// Most functions of one project. Default 200.
    pub max_functions: usize,
    /// Control addresses of the fleet's gateways (`http://10.0.0.4:8081`), separated by commas.
    /// This setting and those below are for the program `epsilon-builder`; `epsilon up` has its
    /// builder in the same process.
    pub gateways: Option<String>,
    /// The file with the token: a copy of the gateway's `DATA/builder.token`.
    pub token_file: Option<PathBuf>,
    /// Address of this builder's listener. Default `0.0.0.0:8083`: gateways connect from other
    /// machines, and every request needs a token that a gateway of the fleet signed.
    pub listen: SocketAddr,
    /// Address that gateways use instead of the one derived from the connection to the gateway:
    /// `host` or `host:port`.
    pub advertise: Option<String>,
    /// This builder's certificate, in PEM, to use TLS. Set together with `tls_key` and
    /// `tls_authority`. Default: none, plain HTTP.
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, in PEM.
    pub tls_key: Option<PathBuf>,
    /// Authorities that signed the certificates of the fleet, in PEM.
    pub tls_authority: Option<PathBuf>,
    /// Address where `GET /metrics` and `GET /healthz` answer without a gateway token, for
    /// collectors: for example `0.0.0.0:8085`. Default: none.
    pub metrics: Option<SocketAddr>,
    /// The file with the key that collectors on other machines send (`authorization: Bearer KEY`):
    /// any text of your choice. Default: none, and `/metrics` answers this machine only.
    pub metrics_key_file: Option<PathBuf>,
    /// Builds that may wait for a slot; gateways send more to another builder. Default 16.
    pub builds_waiting: usize,
    /// Open connections at most. Default 64: each build has one.
    pub max_connections: usize,
    /// Longest wait for a TLS handshake and a request's head. Default 10 s.
    #[serde(deserialize_with = "serde_text::duration")]
    pub head_timeout: Duration,
    /// How long a gateway's connection may stay without a request. Default 60 s: longer than
    /// gateways keep idle connections.
    #[serde(deserialize_with = "serde_text::duration")]
    pub idle_timeout: Duration,
    /// How long running builds may go on after the first shutdown signal. Default 90 s: most builds
    /// take seconds, and process managers kill after about two minutes.
    #[serde(deserialize_with = "serde_text::duration")]
    pub drain_grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let source = SourceLimits::default();
        let ceilings = Ceilings::default();
        Self {
            engine: None,
            engine_timeout: Duration::from_secs(120),
            image_transfer: ImageTransfer::Lacking,
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
            shelf_size: Bytes::mib(2 << 10),
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
            metrics: None,
            metrics_key_file: None,
            builds_waiting: 16,
            max_connections: 64,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            drain_grace: Duration::from_secs(90),
        }
    }
}

/// How images get into the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageTransfer {
    /// An archive with the layers that the engine lacks. Engines with the classic store accept
    /// that.
    Lacking,
    /// An archive with all layers.
    Whole,
    /// Layers unpacked into a container, which is then committed.
    Commit,
}

fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret<String>>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(Secret::new))
}
