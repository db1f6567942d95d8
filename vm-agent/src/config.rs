//! Settings of the agent: what an operator may write ([`Settings`]) and what the agent runs by
//! ([`Config`], checked). Every default is explained where its key is declared. In `epsilon up`
//! these keys are the section `vm_agent:` of the settings file, or `EPSILON_VM_AGENT_<KEY>`.

pub(crate) mod invalid;
mod member;

use crate::cell::demand::Range;
use crate::config::invalid::ConfigError;
use crate::engine::limits::{ContainerLimits, Seccomp};
use crate::keepalive::histogram::REACH;
use crate::keepalive::policy;
use crate::network::reach::Reach;
use epsilon_api::ids::VmId;
use epsilon_api::serde_text;
use epsilon_api::units::Bytes;
use epsilon_registry::{Access, RegistrySettings};
pub use member::MemberConfig;
use serde::Deserialize;
use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

/// Defaults of `cells_min` and `cells_max`.
const CELLS_MIN: u32 = 2;
const CELLS_MAX: u32 = 8;
/// Default of `user_ids`: a range that systemd's table of ids lists as unused, and below the
/// largest id that engines accept.
const USER_IDS: RangeInclusive<u32> = 1_879_048_192..=2_147_483_646;

/// The section as written in the file. All keys are optional.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// This VM's name in the fleet. Default: the instance id where the agent joins a fleet on EC2,
    /// else one that is generated at the first start and stored in `DATA/vm/id`.
    pub id: Option<VmId>,
    /// The engine's unix socket. Default: `DOCKER_HOST` if it names one, else
    /// `/var/run/docker.sock`.
    pub engine_socket: Option<PathBuf>,
    /// Another OCI runtime that the engine knows (`runsc`, `kata`). Default: the engine's own.
    pub engine_runtime: Option<String>,
    /// Timeout of one request to the engine. Default `60s`: a busy engine on a slow disk needs
    /// seconds for a container; a minute means that it hangs.
    #[serde(deserialize_with = "serde_text::some_duration")]
    pub engine_timeout: Option<Duration>,
    /// Timeout of one image pull. Default `5m`: one gigabyte at 30 Mbit/s.
    #[serde(deserialize_with = "serde_text::some_duration")]
    pub pull_timeout: Option<Duration>,
    /// Image pulls at once; others wait for their turn. Default `3`: as many as the layers that an
    /// engine fetches at once for one image, so that the first pull is not slowed down by all that
    /// follow.
    pub pulls_at_once: Option<usize>,
    /// The registry that `registry_user` belongs to, `host[:port][/prefix]`: the password is sent
    /// to no other one. Not needed for ECR, which takes the machine's role.
    pub registry: Option<String>,
    /// User at that registry.
    pub registry_user: Option<String>,
    /// A file with that user's password or token. Read for each pull, so that it can be replaced at
    /// any time.
    pub registry_password_file: Option<PathBuf>,
    /// A `config.json` with credentials for any registry, as `docker login` writes it (`auths`
    /// only; helpers are not run). Read for each pull.
    pub registry_docker_config: Option<PathBuf>,
    /// Timeout from the start of a container until its code is loaded; after it the start has
    /// failed with `FUNCTION_INIT_FAILED`. Default `30s`: room for heavy frameworks on a loaded
    /// machine.
    #[serde(deserialize_with = "serde_text::some_duration")]
    pub start_timeout: Option<Duration>,
    /// Memory of all instances together. Default: 80 % of the machine's, so that the engine, the
    /// page cache and this agent have the rest.
    #[serde(deserialize_with = "serde_text::some_text")]
    pub memory: Option<Bytes>,
    /// Instance starts at once on this VM. Default: two per core, from 4 to 16. More only makes
    /// each of them slower: the engine serializes much of a start.
    pub starts_at_once: Option<usize>,
    /// The same for one version of one function. Default: half of `starts_at_once`, so that a burst
    /// on one function leaves room for the first call of another.
    pub starts_per_version: Option<usize>,
    /// Cells (booted containers that wait for code) kept ready at least, for functions with default
    /// memory and network, once a function was deployed or called here. Default `2`, at most
    /// `cells_max`: a first call and one more at the same time find one. Each takes 256 MiB of the
    /// VM's memory, and is removed when instances need it.
    pub cells_min: Option<u32>,
    /// Limit of cells, of all kinds; how many there are follows the starts of the last minutes.
    /// Default `8`: a burst of this many first calls starts in milliseconds, and later ones wait
    /// for a cell to boot. Cells never take the last memory. `0` turns them off: each cold start
    /// creates a container from the function's image.
    pub cells_max: Option<u32>,
    /// Longest that a call waits for a slot in an instance before it is answered 429, and that a
    /// start waits for memory before its calls are answered 503. A call for which an instance is
    /// starting waits for the end of that start. `0s` turns waiting off. Default `10s`: bridges a
    /// burst, and ends before the 30 s that most clients wait.
    #[serde(deserialize_with = "serde_text::some_duration")]
    pub queue_wait: Option<Duration>,
    /// Limit of waiting calls of one version; one more is answered 429. Default `1000`: each costs
    /// a few kilobytes and an open connection at the gateway.
    pub queue_depth: Option<usize>,
    /// Age at which an idle connection to an instance is closed. Must be well below the instance's
    /// own keep-alive, or a call could be sent on a closing connection. Default `1500ms`: common
    /// servers keep connections for 2 s (gunicorn) or 5 s (Node, uvicorn).
    #[serde(deserialize_with = "serde_text::some_duration")]
    pub connection_idle: Option<Duration>,
    /// How long an idle instance stays where the function sets no `idleTimeout` and its pauses
    /// between calls are not representative (yet). Default `5m`, as of most platforms.
    #[serde(deserialize_with = "serde_text::some_duration")]
    pub instance_idle: Option<Duration>,
    /// Lower limit of the time that is derived from a function's pauses. Default `30s`: much less
    /// would turn a short gap in a busy function's calls into starts.
    #[serde(deserialize_with = "serde_text::some_duration")]
    pub instance_idle_min: Option<Duration>,
    /// Upper limit of that time. Default `4h`, the range in which pauses are measured: memory that
    /// is not needed otherwise costs nothing, and when it is, the instance of lowest value is
    /// evicted at once. With the same value as `instance_idle_min`, all functions with
    /// representative pauses have this time.
    #[serde(deserialize_with = "serde_text::some_duration")]
    pub instance_idle_max: Option<Duration>,
    /// How long an instance is idle before its processes are frozen, so that it uses no CPU until
    /// its next call, which thaws them within microseconds. Default `10s`: work that a handler left
    /// running can end, and a burst does not notice. `0s` turns it off for all; a function that
    /// works between calls sets `idle: run`.
    #[serde(deserialize_with = "serde_text::some_duration")]
    pub freeze_after: Option<Duration>,
    /// Limit of processes and threads in one instance. Default `256`: Node takes a dozen; a fork
    /// bomb is stopped here.
    pub pids_limit: Option<u32>,
    /// Size of an instance's `/tmp`, which is memory and counts against the instance. Programs in
    /// it may be executed. Default `64MiB`.
    #[serde(deserialize_with = "serde_text::some_text")]
    pub tmp_size: Option<Bytes>,
    /// Limit of open files in one instance. Default `16384`.
    pub open_files: Option<u32>,
    /// Range of user ids of which each instance gets one of its own, `FIRST-LAST`, so that what the
    /// kernel counts by user is not shared. Default `1879048192-2147483646`: a range that neither
    /// people, services nor other container engines use. A smaller one has to hold all instances of
    /// this machine. `shared`: all instances run as 65532, as they do where the agent is not root.
    pub user_ids: Option<String>,
    /// Seccomp profile of instances. Default `own`: the one of this release, which allows what
    /// Docker's does except io_uring, AF_VSOCK and other rare kinds of sockets, and 32-bit
    /// programs. `engine`: the engine's own, for an engine without seccomp and for programs that
    /// need what is refused.
    pub seccomp: Seccomp,
    /// Size of one function's stored log on this VM; the oldest lines are removed first. Default
    /// `10MiB`.
    #[serde(deserialize_with = "serde_text::some_text")]
    pub log_size: Option<Bytes>,
    /// Longest line or message of a log; the rest of it is cut. Default `16KiB`.
    #[serde(deserialize_with = "serde_text::some_text")]
    pub log_line: Option<Bytes>,
    /// How full the disk with the engine's images may be, in percent. Beyond it, images that no
    /// instance uses and that can be pulled again are removed, the least recently used first, until
    /// 5 less are used. Default `85`: the rest is room for the largest images that arrive at once.
    /// `100` turns it off.
    pub disk_limit: Option<u8>,
    /// How often that disk is checked. Default `1m`: what arrives in a minute is less than what is
    /// left.
    #[serde(deserialize_with = "serde_text::some_duration")]
    pub disk_look: Option<Duration>,
    /// Disk space of unpacked code layers, beside the engine's images. Beyond it, layers that no
    /// cell has mounted are removed, the least recently used first. Default `10GiB`: the code of
    /// hundreds of functions; a removed layer costs one fetch.
    #[serde(deserialize_with = "serde_text::some_text")]
    pub layers_size: Option<Bytes>,
    /// Code layers fetched and unpacked at once; others wait for their turn. Each has
    /// `pull_timeout`, including its wait. Default `8`: most are small and cost one round trip to
    /// the registry.
    pub layers_at_once: Option<usize>,
    /// The directory where a builder on this machine stores the layers that it made
    /// (`DATA/builder/shelf`). Default: none, but `epsilon up` sets its own builder's.
    pub layer_shelf: Option<PathBuf>,
    /// Uses plain HTTP with registries when it fetches code layers, as `insecure-registries` lets
    /// the engine: anyone on the network path reads the password. Content is verified by its digest
    /// in any case. Default `false`; a registry on this machine is always reached by plain HTTP,
    /// unless `/etc/docker/certs.d` has a certificate for it.
    pub dangerous_registry_plain_http: bool,
    /// How often the engine's containers are compared with the agent's state. Default `10s`.
    #[serde(deserialize_with = "serde_text::some_duration")]
    pub reconcile_every: Option<Duration>,
    /// Longest that a shutdown of the agent waits for the next of its containers to be removed,
    /// after its grace period; four times as long for all of them. Default `20s`.
    #[serde(deserialize_with = "serde_text::some_duration")]
    pub remove_timeout: Option<Duration>,
    /// Gives functions a network although this machine and 169.254.169.254 (the cloud's metadata,
    /// with the VM's own credentials) cannot be closed to them, because the agent is not root or
    /// has no iptables. Default `false`: such functions are refused.
    pub dangerous_allow_metadata: bool,
    /// Networks that functions cannot reach, CIDRs separated by commas. Default `own`: those that
    /// this VM's interfaces are in, with its neighbours and other VMs of the fleet. For example
    /// `own,10.0.0.0/8`; `none` closes nothing. The machine itself and 169.254.169.254 are always
    /// closed; the resolvers of the machine stay open for DNS.
    pub closed_networks: Option<String>,
    /// Exceptions: addresses that functions can reach, `ADDRESS[/BITS][:PORT]` separated by commas:
    /// for example `192.168.1.10:5432`, a database on this machine that listens on its address in
    /// the network. Default: none.
    pub open_addresses: Option<String>,
    /// Control addresses of the fleet's gateways (`http://10.0.0.4:8081`), separated by commas.
    /// This setting and those after it are for `epsilon-vm-agent`; `epsilon up` has its agent in
    /// its own process.
    pub gateways: Option<String>,
    /// The file with the fleet's token: a copy of a gateway's `DATA/fleet.token`. Read when the VM
    /// joins.
    pub token_file: Option<PathBuf>,
    /// Address of the listener for gateways' calls. Default `0.0.0.0:8082`: gateways are on other
    /// machines, and requests without a gateway's token are refused.
    pub listen: Option<SocketAddr>,
    /// Address where `GET /metrics` and `GET /healthz` answer without a gateway's token, for
    /// collectors: for example `0.0.0.0:8084`. Default: none.
    pub metrics: Option<SocketAddr>,
    /// The file with the key that collectors on other machines send (`authorization: Bearer KEY`):
    /// any text of your choice. Default: none, and `/metrics` answers this machine only.
    pub metrics_key_file: Option<PathBuf>,
    /// `host` or `host:port` under which gateways reach this VM. Default: the local address that
    /// reaches a gateway.
    pub advertise: Option<String>,
    /// This VM's certificate in PEM, for TLS with gateways; it names the host of `advertise`. Set
    /// together with `tls_key` and `tls_authority`. Default: none, plain HTTP.
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, in PEM.
    pub tls_key: Option<PathBuf>,
    /// The authority that signed the certificates of the fleet, in PEM.
    pub tls_authority: Option<PathBuf>,
    /// Limit of connections of gateways. Default `4096`: a call takes one, and a VM rarely runs a
    /// thousand.
    pub max_connections: Option<usize>,
    /// Timeout of a TLS handshake, and of the first head on a connection. Default `10s`.
    #[serde(deserialize_with = "serde_text::some_duration")]
    pub head_timeout: Option<Duration>,
    /// Longest that a gateway's connection may be idle. Default `60s`: longer than gateways keep
    /// one (`gateway.member_idle_timeout`), so that no call is sent into a connection that closes.
    #[serde(deserialize_with = "serde_text::some_duration")]
    pub idle_timeout: Option<Duration>,
    /// Longest that running calls may go on after the first signal, or after the cloud's notice
    /// that it takes this VM away. Default `90s`: longer than a function's default timeout, and
    /// within the two minutes of a spot notice.
    #[serde(deserialize_with = "serde_text::some_duration")]
    pub drain_grace: Option<Duration>,
}

/// Checked settings. Holding one means that it is valid.
#[derive(Clone, Debug)]
pub struct Config {
    /// The agent's own directory, `DATA/vm`.
    pub folder: PathBuf,
    /// The id that is set; `None`: the stored or a generated one.
    pub id: Option<VmId>,
    /// The engine's unix socket.
    pub engine_socket: PathBuf,
    /// Timeout of one engine request.
    pub engine_timeout: Duration,
    /// Timeout of one pull, and of all layers of one version.
    pub pull_timeout: Duration,
    /// Limit of concurrent pulls.
    pub pulls_at_once: usize,
    /// Credentials for registries: [`Settings::registry_user`],
    /// [`Settings::registry_docker_config`], ECR.
    pub registries: Access,
    /// Timeout from the start of a container until its code is loaded.
    pub start_timeout: Duration,
    /// Memory of all instances together; `None`: a share of the machine's.
    pub memory: Option<Bytes>,
    /// Limit of concurrent starts on this VM.
    pub starts_at_once: usize,
    /// Limit of concurrent starts of one version.
    pub starts_per_version: usize,
    /// Limits of the number of ready cells.
    pub(crate) cells: Range,
    /// Longest wait of a call for a slot, and of a start for memory.
    pub queue_wait: Duration,
    /// Limit of waiting calls of one version.
    pub queue_depth: usize,
    /// Age at which an idle connection to an instance is closed.
    pub connection_idle: Duration,
    /// Keep-alive times: [`Settings::instance_idle`] and its limits.
    pub keep: policy::Settings,
    /// Idle time before an instance is frozen; `None`: never.
    pub freeze_after: Option<Duration>,
    /// Size of one function's stored log, in bytes.
    pub log_size: Bytes,
    /// Longest log line, in bytes.
    pub log_line: usize,
    /// Disk usage above which images are removed, in percent.
    pub disk_limit: u8,
    /// Interval of the disk checks.
    pub disk_look: Duration,
    /// Size of the store of unpacked layers.
    pub layers_size: Bytes,
    /// Limit of concurrent layer fetches.
    pub layers_at_once: usize,
    /// Layer cache of a builder on this machine.
    pub layer_shelf: Option<PathBuf>,
    /// Use plain HTTP with registries for layers.
    pub dangerous_registry_plain_http: bool,
    /// Interval of reconciliation.
    pub reconcile_every: Duration,
    /// Longest wait for the next removal of a container at shutdown.
    pub remove_timeout: Duration,
    /// Run functions with a network also where the metadata service cannot be closed.
    pub dangerous_allow_metadata: bool,
    /// Range of instances' user ids; `None`: shared.
    pub user_ids: Option<RangeInclusive<u32>>,
    /// Closed networks and their exceptions, for functions with a network.
    pub(crate) reach: Reach,
    /// Limits of every container.
    pub limits: ContainerLimits,
    /// Membership in a fleet; `None` without gateways.
    pub member: Option<MemberConfig>,
}

impl Settings {
    /// Fills in the defaults and checks. `data` is the directory that all parts share; the agent's
    /// own files are in `data/vm`.
    ///
    /// # Errors
    /// The first invalid setting.
    pub fn check(self, data: &Path) -> Result<Config, ConfigError> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let starts_at_once = self.starts_at_once.unwrap_or_else(|| (2 * cores).clamp(4, 16));
        let starts_per_version =
            self.starts_per_version.unwrap_or_else(|| starts_at_once.div_ceil(2));
        let cells_max = self.cells_max.unwrap_or(CELLS_MAX);
        let member = member::read(&self)?;
        let registry = RegistrySettings {
            registry: self.registry,
            user: self.registry_user,
            password: None,
            password_file: self.registry_password_file,
            docker_config: self.registry_docker_config,
        };
        let (_, registries) = registry.check()?;
        let seconds = Duration::from_secs;
        let config = Config {
            folder: data.join("vm"),
            id: self.id,
            engine_socket: self.engine_socket.unwrap_or_else(epsilon_engine_socket::default_path),
            engine_timeout: self.engine_timeout.unwrap_or(seconds(60)),
            pull_timeout: self.pull_timeout.unwrap_or(seconds(300)),
            pulls_at_once: self.pulls_at_once.unwrap_or(3),
            registries,
            start_timeout: self.start_timeout.unwrap_or(seconds(30)),
            memory: self.memory,
            starts_at_once,
            starts_per_version,
            cells: Range {
                min: self.cells_min.unwrap_or(CELLS_MIN.min(cells_max)),
                max: cells_max,
            },
            queue_wait: self.queue_wait.unwrap_or(seconds(10)),
            queue_depth: self.queue_depth.unwrap_or(1000),
            connection_idle: self.connection_idle.unwrap_or(Duration::from_millis(1500)),
            keep: policy::Settings {
                default: self.instance_idle.unwrap_or(seconds(300)),
                min: self.instance_idle_min.unwrap_or(seconds(30)),
                max: self.instance_idle_max.unwrap_or(REACH),
            },
            freeze_after: Some(self.freeze_after.unwrap_or(seconds(10)))
                .filter(|after| !after.is_zero()),
            log_size: self.log_size.unwrap_or(Bytes::mib(10)),
            log_line: self.log_line.map_or(16 << 10, |size| size.get() as usize),
            disk_limit: self.disk_limit.unwrap_or(85),
            disk_look: self.disk_look.unwrap_or(seconds(60)),
            layers_size: self.layers_size.unwrap_or(Bytes::mib(10 << 10)),
            layers_at_once: self.layers_at_once.unwrap_or(8),
            layer_shelf: self.layer_shelf,
            dangerous_registry_plain_http: self.dangerous_registry_plain_http,
            reconcile_every: self.reconcile_every.unwrap_or(seconds(10)),
            remove_timeout: self.remove_timeout.unwrap_or(seconds(20)),
            dangerous_allow_metadata: self.dangerous_allow_metadata,
            user_ids: user_ids(self.user_ids.as_deref())?,
            reach: Reach::read(self.closed_networks.as_deref(), self.open_addresses.as_deref())?,
            limits: ContainerLimits {
                runtime: self.engine_runtime,
                pids: self.pids_limit.unwrap_or(256),
                tmp_size: self.tmp_size.unwrap_or(Bytes::mib(64)),
                open_files: self.open_files.unwrap_or(16_384),
                seccomp: self.seccomp,
            },
            member,
        };
        let second = seconds(1);
        let rules = [
            ("engine_timeout", config.engine_timeout >= second, "1s"),
            ("pull_timeout", config.pull_timeout >= second, "1s"),
            ("start_timeout", config.start_timeout >= Duration::from_millis(100), "100ms"),
            ("pulls_at_once", config.pulls_at_once >= 1, "1"),
            ("starts_at_once", config.starts_at_once >= 1, "1"),
            ("starts_per_version", config.starts_per_version >= 1, "1"),
            ("cells_max", config.cells.max >= config.cells.min, "`cells_min`"),
            ("queue_depth", config.queue_depth >= 1, "1"),
            ("connection_idle", config.connection_idle >= Duration::from_millis(1), "1ms"),
            ("instance_idle", !config.keep.default.is_zero(), "1ms"),
            ("instance_idle_min", !config.keep.min.is_zero(), "1ms"),
            ("instance_idle_max", config.keep.max >= config.keep.min, "`instance_idle_min`"),
            ("pids_limit", config.limits.pids >= 16, "16"),
            ("open_files", config.limits.open_files >= 64, "64"),
            ("tmp_size", config.limits.tmp_size >= Bytes::mib(1), "1MiB"),
            ("log_size", config.log_size >= Bytes(64 << 10), "64KiB"),
            ("log_line", config.log_line >= 256, "256B"),
            ("disk_look", config.disk_look >= Duration::from_millis(10), "10ms"),
            ("layers_size", config.layers_size >= Bytes::mib(1), "1MiB"),
            ("layers_at_once", config.layers_at_once >= 1, "1"),
            ("reconcile_every", config.reconcile_every >= Duration::from_millis(50), "50ms"),
            ("remove_timeout", config.remove_timeout >= second, "1s"),
            ("memory", config.memory.is_none_or(|size| size >= Bytes::mib(16)), "16MiB"),
        ];
        if config.disk_limit > 100 {
            return Err(ConfigError::TooLarge { key: "disk_limit", most: "100" });
        }
        for (key, good, least) in rules {
            if !good {
                return Err(ConfigError::TooSmall { key, least });
            }
        }
        if starts_per_version > starts_at_once {
            return Err(ConfigError::StartsPerVersion {
                per_version: starts_per_version,
                at_once: starts_at_once,
            });
        }
        Ok(config)
    }
}

/// Parses `user_ids`. Ids of people begin at 1000, and the kernel reserves the last ones.
fn user_ids(written: Option<&str>) -> Result<Option<RangeInclusive<u32>>, ConfigError> {
    let range = match written.map(str::trim) {
        None => return Ok(Some(USER_IDS)),
        Some("shared") => return Ok(None),
        Some(text) => text
            .split_once('-')
            .and_then(|(first, last)| Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)),
    };
    let good = |range: &RangeInclusive<u32>| {
        !range.is_empty() && *range.start() >= 1000 && *range.end() <= *USER_IDS.end()
    };
    let range = range.filter(good);
    range.map(Some).ok_or_else(|| ConfigError::UserIds(written.unwrap_or_default().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<Config, String> {
        let settings: Settings = serde_yaml::from_str(yaml).map_err(|e| e.to_string())?;
        settings.check(Path::new("/data")).map_err(|e| epsilon_api::chain::Chain(&e).to_string())
    }

    #[test]
    fn empty_settings_mean_the_defaults() {
        let config = read("{}").unwrap();
        assert_eq!(config.folder, Path::new("/data/vm"));
        assert_eq!(config.queue_wait, Duration::from_secs(10));
        assert!(!config.dangerous_allow_metadata);
    }

    #[test]
    fn units_are_read() {
        let config = read("{queue_wait: 250ms, memory: 2GiB, starts_at_once: 2}").unwrap();
        assert_eq!(config.queue_wait, Duration::from_millis(250));
        assert_eq!(config.memory, Some(Bytes(2 << 30)));
        assert_eq!(config.starts_per_version, 1);
    }

    #[test]
    fn no_cells_at_all_need_one_setting() {
        assert_eq!(read("{cells_max: 0}").unwrap().cells, Range { min: 0, max: 0 });
        assert_eq!(read("{cells_max: 1}").unwrap().cells, Range { min: 1, max: 1 });
    }

    #[test]
    fn a_fleet_is_named_or_there_is_none() {
        assert!(read("{listen: '127.0.0.1:1'}").unwrap().member.is_none());
        let member = read("{gateways: 'http://a:1', token_file: x}").unwrap().member.unwrap();
        assert_eq!(member.listen, "0.0.0.0:8082".parse().unwrap());
        assert!(member.limits.idle > Duration::from_secs(15), "longer than gateways keep one");
    }

    #[test]
    fn instances_have_own_user_ids_by_default() {
        assert_eq!(read("{}").unwrap().user_ids, Some(USER_IDS));
        assert_eq!(read("{user_ids: 100000-165535}").unwrap().user_ids, Some(100_000..=165_535));
        assert_eq!(read("{user_ids: shared}").unwrap().user_ids, None);
    }

    #[test]
    fn bad_settings_name_the_key() {
        for (yaml, part) in [
            ("{queue_wait: soon}", "`soon` is not a duration"),
            ("{memory: 1KiB}", "vm_agent.memory"),
            ("{quue_wait: 1s}", "quue_wait"),
            ("{starts_at_once: 2, starts_per_version: 3}", "starts_per_version"),
            ("{starts_at_once: 0}", "starts_at_once"),
            ("{cells_min: 3, cells_max: 2}", "vm_agent.cells_max"),
            ("{cells_min: 9}", "vm_agent.cells_max"),
            ("{disk_limit: 101}", "disk_limit"),
            ("{pulls_at_once: 0}", "pulls_at_once"),
            ("{layers_at_once: 0}", "layers_at_once"),
            ("{registry_user: ann}", "vm_agent.registry_user"),
            ("{registry: 'https://registry.example'}", "vm_agent.registry"),
            ("{registry_docker_config: /nowhere}", "no such file"),
            ("{gateways: 'https://a:1', token_file: x}", "`https://` needs the settings"),
            ("{instance_idle_min: 1h, instance_idle_max: 1m}", "vm_agent.instance_idle_max"),
            ("{instance_idle: 0s}", "vm_agent.instance_idle"),
            ("{user_ids: 0-100000}", "vm_agent.user_ids"),
            ("{user_ids: 200000-100000}", "vm_agent.user_ids"),
            ("{user_ids: 100000-4294967295}", "vm_agent.user_ids"),
            ("{user_ids: many}", "vm_agent.user_ids"),
            ("{seccomp: none}", "seccomp"),
            ("{closed_networks: '10.0.0.0/8,10.0'}", "vm_agent.closed_networks"),
            ("{open_addresses: 'db.example:5432'}", "vm_agent.open_addresses"),
            ("{tls_key: k.pem}", "set together or not at all"),
        ] {
            let err = read(yaml).unwrap_err();
            assert!(err.contains(part), "{yaml}: {err}");
        }
    }
}
