//! Settings of the agent: what an operator may write ([`Settings`]) and what the agent runs by
//! ([`Config`], checked). Every default is explained where its key is declared. In `epsilon up` these
//! keys are the section `vm_agent:` of the settings file, or `EPSILON_VM_AGENT_<KEY>`.

mod member;

use crate::{
    cell::demand::Range,
    keep::{histogram::REACH, policy},
    network::reach::Reach,
};
use epsilon_api::{ids::VmId, units::Bytes, written};
use epsilon_registry::{Access, Written};
use epsilon_wire::{join::BadGateway, tls::TlsError};
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
/// Default of `user_ids`: what systemd's table of ids calls unused, and below what engines take for an id.
const USER_IDS: RangeInclusive<u32> = 1_879_048_192..=2_147_483_646;

/// The section as written. All keys may be left out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// This VM's name in the fleet. Default: the instance id where the agent joins a fleet on EC2, else one that is made
    /// at the first start and kept in `DATA/vm/id`.
    pub id: Option<VmId>,
    /// The engine's unix socket. Default: `DOCKER_HOST` if it names one, else `/var/run/docker.sock`.
    pub engine_socket: Option<PathBuf>,
    /// Another OCI runtime that the engine knows (`runsc`, `kata`). Default: the engine's own.
    pub engine_runtime: Option<String>,
    /// Longest that one question to the engine may take. Default `60s`: a busy engine on a slow disk
    /// needs seconds for a container; a minute means that it hangs.
    #[serde(deserialize_with = "written::some_duration")]
    pub engine_timeout: Option<Duration>,
    /// Longest that an image may take to arrive. Default `5m`: one gigabyte at 30 Mbit/s.
    #[serde(deserialize_with = "written::some_duration")]
    pub pull_timeout: Option<Duration>,
    /// Images that may arrive at once; others wait for their turn. Default `3`: as many as the layers that an
    /// engine fetches at once for one image, so that the first one is not slowed down by all that follow.
    pub pulls_at_once: Option<usize>,
    /// The registry that `registry_user` is known to, `host[:port][/prefix]`: no other one is shown the
    /// password. Not needed for ECR, which is met with the machine's role.
    pub registry: Option<String>,
    /// User at that registry.
    pub registry_user: Option<String>,
    /// A file with that user's password or token. Read for each pull, so that it can be replaced at any
    /// time.
    pub registry_password_file: Option<PathBuf>,
    /// A `config.json` with logins for any registry, as `docker login` writes it (`auths` only; helpers are
    /// not run). Read for each pull.
    pub registry_docker_config: Option<PathBuf>,
    /// Longest from the start of a container until its code is loaded; after it the start has failed
    /// with `FUNCTION_INIT_FAILED`. Default `30s`: room for heavy frameworks on a loaded machine.
    #[serde(deserialize_with = "written::some_duration")]
    pub start_timeout: Option<Duration>,
    /// Memory that all instances may have together. Default: 80 % of the machine's, so that the engine,
    /// the page cache and this agent keep the rest.
    #[serde(deserialize_with = "written::some_text")]
    pub memory: Option<Bytes>,
    /// Instances that may start at once on this VM. Default: two per core, from 4 to 16. More only
    /// makes each of them slower: the engine does much of a start one at a time.
    pub starts_at_once: Option<usize>,
    /// The same for one version of one function. Default: half of `starts_at_once`, so that a burst on
    /// one function leaves room for the first call of another.
    pub starts_per_version: Option<usize>,
    /// Booted containers that wait for code (cells) kept ready at least for functions that say nothing about memory and
    /// network, once a function was deployed or called here. Default `2`, at most `cells_max`: a first call and one more at
    /// the same time find one. Each takes 256 MiB of the VM's memory, and gives it up when instances need it.
    pub cells_min: Option<u32>,
    /// Cells at most, of all kinds; how many there are follows the starts of the last minutes. Default `8`: a burst of so
    /// many first calls starts in milliseconds, and what comes behind waits for one to boot. Cells never take the last
    /// memory. `0` turns them off: each cold start makes a container from the function's image.
    pub cells_max: Option<u32>,
    /// Longest that a call waits for a place in an instance before it is answered 429, and that a start
    /// waits for memory before its calls are answered 503. A call that an instance is starting for
    /// waits for the end of that start. `0s` turns waiting off. Default
    /// `10s`: bridges a burst, and ends before the 30 s that most clients wait.
    #[serde(deserialize_with = "written::some_duration")]
    pub queue_wait: Option<Duration>,
    /// Calls of one version that may wait at once; one more is answered 429. Default `1000`: each
    /// costs a few kilobytes and an open connection at the gateway.
    pub queue_depth: Option<usize>,
    /// Age at which an idle connection to an instance is closed. Must stay well below the instance's
    /// own keep-alive, or a call could meet a closing connection. Default `1500ms`: common servers
    /// keep 2 s (gunicorn) or 5 s (Node, uvicorn).
    #[serde(deserialize_with = "written::some_duration")]
    pub connection_idle: Option<Duration>,
    /// How long an idle instance stays where the function sets no `idleTimeout` and its pauses between calls say nothing
    /// (yet). Default `5m`, as of most platforms.
    #[serde(deserialize_with = "written::some_duration")]
    pub instance_idle: Option<Duration>,
    /// The shortest time that a function's pauses may make of it. Default `30s`: much less would turn a short gap in a busy
    /// function's calls into starts.
    #[serde(deserialize_with = "written::some_duration")]
    pub instance_idle_min: Option<Duration>,
    /// The longest. Default `4h`, as far as pauses are told apart: memory that nobody else needs costs nothing, and when
    /// somebody does, the instance that is worth least goes at once. With the same value as `instance_idle_min`, all
    /// functions whose pauses are known have this time.
    #[serde(deserialize_with = "written::some_duration")]
    pub instance_idle_max: Option<Duration>,
    /// How long an instance is idle before its processes are stopped, so that it costs no processor until its next call, which
    /// lets them go on within microseconds. Default `10s`: work that a handler left behind has its time, a burst does not
    /// notice. `0s` turns it off for all; a function that works between calls says `idle: run`.
    #[serde(deserialize_with = "written::some_duration")]
    pub freeze_after: Option<Duration>,
    /// Processes and threads in one instance. Default `256`: Node takes a dozen; a fork bomb ends here.
    pub pids_limit: Option<u32>,
    /// Size of an instance's `/tmp`, which is memory and counts against the instance. Programs in it may be executed.
    /// Default `64MiB`.
    #[serde(deserialize_with = "written::some_text")]
    pub tmp_size: Option<Bytes>,
    /// Open files in one instance. Default `16384`.
    pub open_files: Option<u32>,
    /// User ids of which each instance gets one of its own, `FIRST-LAST`, so that what the kernel counts by user is nobody
    /// else's. Default `1879048192-2147483646`: a range that neither people, services nor other container engines use. A
    /// smaller one has to hold all instances of this machine. `shared`: all instances run as 65532, as they do where the
    /// agent is not root.
    pub user_ids: Option<String>,
    /// Which seccomp profile instances run under. Default `own`: the one of this release, which allows what Docker's does but
    /// io_uring, AF_VSOCK and other rare kinds of sockets, and 32-bit programs. `engine`: the engine's own, for an engine
    /// without seccomp and for programs that need what is refused.
    pub seccomp: Seccomp,
    /// Kept log of one function on this VM; the oldest goes first. Default `10MiB`.
    #[serde(deserialize_with = "written::some_text")]
    pub log_size: Option<Bytes>,
    /// Longest line or message of a log; the rest of it is cut. Default `16KiB`.
    #[serde(deserialize_with = "written::some_text")]
    pub log_line: Option<Bytes>,
    /// How full the disk with the engine's images may be, in percent. Beyond it, images that no instance uses and that can
    /// be pulled again go, the one not used for longest first, until 5 less are used. Default `85`: what is left is room
    /// for the largest images that arrive at once. `100` turns it off.
    pub disk_limit: Option<u8>,
    /// How often that disk is looked at. Default `1m`: what arrives in a minute is less than what is left.
    #[serde(deserialize_with = "written::some_duration")]
    pub disk_look: Option<Duration>,
    /// Disk that unpacked code layers may take, beside the engine's images. Beyond it, those that no cell has mounted go, the
    /// one not used for longest first. Default `10GiB`: the code of hundreds of functions; a layer that went costs one
    /// fetch.
    #[serde(deserialize_with = "written::some_text")]
    pub layers_size: Option<Bytes>,
    /// Code layers that may be fetched and unpacked at once; others wait for their turn. Each has `pull_timeout`, with its
    /// wait. Default `8`: most are small and cost a way to the registry and back.
    pub layers_at_once: Option<usize>,
    /// The folder where a builder on this machine leaves the layers that it made (`DATA/builder/shelf`). Default: none, but
    /// `epsilon up` names its own builder's.
    pub layer_shelf: Option<PathBuf>,
    /// Speaks plain HTTP with registries when it fetches code layers, as `insecure-registries` lets the engine: whoever is
    /// on the way reads the password. What arrives is checked by its digest in any case. Default `false`; a registry on
    /// this machine is met so anyway, unless `/etc/docker/certs.d` has a certificate for it.
    pub dangerous_registry_plain_http: bool,
    /// How often the engine's containers are compared with what the agent knows. Default `10s`.
    #[serde(deserialize_with = "written::some_duration")]
    pub reconcile_every: Option<Duration>,
    /// Longest that a stop of the agent waits for the next of its containers to go, after its grace; four times as long for all of
    /// them. Default `20s`.
    #[serde(deserialize_with = "written::some_duration")]
    pub remove_timeout: Option<Duration>,
    /// Gives functions a network although their way to this machine and to 169.254.169.254 (the cloud's metadata, with the
    /// VM's own credentials) cannot be closed, because the agent is not root or has no iptables.
    /// Default `false`: such functions are refused.
    pub dangerous_allow_metadata: bool,
    /// Networks that functions do not reach, CIDRs with commas between them. Default `own`: those that this VM's interfaces
    /// are in, where its neighbours and other VMs of the fleet are. For example `own,10.0.0.0/8`; `none` closes nothing. The
    /// machine itself is closed in any case, and so is 169.254.169.254; the resolvers of the machine stay open for DNS.
    pub closed_networks: Option<String>,
    /// Addresses that functions reach all the same, `ADDRESS[/BITS][:PORT]` with commas between them: for example
    /// `192.168.1.10:5432`, a database on this machine that listens on its address in the network. Default: none.
    pub open_addresses: Option<String>,
    /// Control addresses of the fleet's gateways (`http://10.0.0.4:8081`), with commas between them. This setting and
    /// those after it are for `epsilon-vm-agent`; `epsilon up` has its agent in its own process.
    pub gateways: Option<String>,
    /// The file with the fleet's token: a copy of a gateway's `DATA/fleet.token`. Read when the VM joins.
    pub token_file: Option<PathBuf>,
    /// Where gateways bring calls. Default `0.0.0.0:8082`: they come from other machines, and nobody gets in without a
    /// gateway's pass.
    pub listen: Option<SocketAddr>,
    /// Where `GET /metrics` and `GET /healthz` answer without a pass, for collectors: for example `0.0.0.0:8084`.
    /// Default: nowhere.
    pub metrics: Option<SocketAddr>,
    /// The file with the key that collectors on other machines show (`authorization: Bearer KEY`): any text of your choice.
    /// Default: none, and `/metrics` is for this machine only.
    pub metrics_key_file: Option<PathBuf>,
    /// `host` or `host:port` under which gateways reach this VM. Default: the local address that reaches a gateway.
    pub advertise: Option<String>,
    /// This VM's certificate in PEM, to speak TLS with gateways; it names the host of `advertise`. Set together with
    /// `tls_key` and `tls_authority`. Default: none, plain HTTP.
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, in PEM.
    pub tls_key: Option<PathBuf>,
    /// Who signed the certificates of the fleet, in PEM.
    pub tls_authority: Option<PathBuf>,
    /// Connections of gateways at once. Default `4096`: a call takes one, and a VM rarely runs a thousand.
    pub max_connections: Option<usize>,
    /// Longest wait for a TLS handshake and for the first head on a connection. Default `10s`.
    #[serde(deserialize_with = "written::some_duration")]
    pub head_timeout: Option<Duration>,
    /// Longest that a gateway's connection may stay without a request. Default `60s`: longer than gateways keep one
    /// (`gateway.member_idle_timeout`), so that no call is sent into a connection that closes.
    #[serde(deserialize_with = "written::some_duration")]
    pub idle_timeout: Option<Duration>,
    /// Longest that running calls may go on after the first signal, or after the cloud said that it takes this VM
    /// away. Default `90s`: longer than a function's default timeout, and within the two minutes of a spot notice.
    #[serde(deserialize_with = "written::some_duration")]
    pub drain_grace: Option<Duration>,
}

/// Checked settings. Holding one means that it is valid.
#[derive(Clone, Debug)]
pub struct Config {
    /// `DATA/vm`.
    pub folder: PathBuf,
    /// See [`Settings::id`].
    pub id: Option<VmId>,
    /// See [`Settings::engine_socket`].
    pub engine_socket: PathBuf,
    /// See [`Settings::engine_timeout`].
    pub engine_timeout: Duration,
    /// See [`Settings::pull_timeout`].
    pub pull_timeout: Duration,
    /// See [`Settings::pulls_at_once`].
    pub pulls_at_once: usize,
    /// The logins of [`Settings::registry_user`] and [`Settings::registry_docker_config`], and ECR's.
    pub registries: Access,
    /// See [`Settings::start_timeout`].
    pub start_timeout: Duration,
    /// See [`Settings::memory`]; `None` until the engine has said how much there is.
    pub memory: Option<Bytes>,
    /// See [`Settings::starts_at_once`].
    pub starts_at_once: usize,
    /// See [`Settings::starts_per_version`].
    pub starts_per_version: usize,
    /// See [`Settings::cells_min`] and [`Settings::cells_max`].
    pub(crate) cells: Range,
    /// See [`Settings::queue_wait`].
    pub queue_wait: Duration,
    /// See [`Settings::queue_depth`].
    pub queue_depth: usize,
    /// See [`Settings::connection_idle`].
    pub connection_idle: Duration,
    /// See [`Settings::instance_idle`] and its bounds.
    pub keep: policy::Settings,
    /// See [`Settings::freeze_after`]; `None`: never.
    pub freeze_after: Option<Duration>,
    /// See [`Settings::log_size`].
    pub log_size: Bytes,
    /// See [`Settings::log_line`].
    pub log_line: usize,
    /// See [`Settings::disk_limit`].
    pub disk_limit: u8,
    /// See [`Settings::disk_look`].
    pub disk_look: Duration,
    /// See [`Settings::layers_size`].
    pub layers_size: Bytes,
    /// See [`Settings::layers_at_once`].
    pub layers_at_once: usize,
    /// See [`Settings::layer_shelf`].
    pub layer_shelf: Option<PathBuf>,
    /// See [`Settings::dangerous_registry_plain_http`].
    pub dangerous_registry_plain_http: bool,
    /// See [`Settings::reconcile_every`].
    pub reconcile_every: Duration,
    /// See [`Settings::remove_timeout`].
    pub remove_timeout: Duration,
    /// See [`Settings::dangerous_allow_metadata`].
    pub dangerous_allow_metadata: bool,
    /// See [`Settings::user_ids`]; `None`: shared.
    pub user_ids: Option<RangeInclusive<u32>>,
    /// See [`Settings::closed_networks`] and [`Settings::open_addresses`].
    pub(crate) reach: Reach,
    /// What every container gets.
    pub limits: ContainerLimits,
    /// How the VM belongs to a fleet; `None` where none is named.
    pub member: Option<MemberConfig>,
}

/// The part of a container's limits that does not depend on the function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerLimits {
    /// See [`Settings::engine_runtime`].
    pub runtime: Option<String>,
    /// See [`Settings::pids_limit`].
    pub pids: u32,
    /// See [`Settings::tmp_size`].
    pub tmp_size: Bytes,
    /// See [`Settings::open_files`].
    pub open_files: u32,
    /// See [`Settings::seccomp`].
    pub seccomp: Seccomp,
}

/// Where an instance's seccomp profile comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    /// From this release.
    #[default]
    Own,
    /// From the container engine.
    Engine,
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nothing could ever run.
    #[error("`vm_agent.{key}` must be at least {least}")]
    TooSmall {
        /// Which.
        key: &'static str,
        /// The smallest usable value.
        least: &'static str,
    },
    /// There is no such thing.
    #[error("`vm_agent.{key}` must be at most {most}")]
    TooLarge {
        /// Which.
        key: &'static str,
        /// The largest value that makes sense.
        most: &'static str,
    },
    /// The two contradict each other.
    #[error(
        "`vm_agent.starts_per_version` ({per_version}) is more than `vm_agent.starts_at_once` ({at_once})"
    )]
    StartsPerVersion {
        /// As written.
        per_version: usize,
        /// As written.
        at_once: usize,
    },
    /// The login for a registry is not whole.
    #[error("`vm_agent.{}` ({}): {}", .0.key, .0.value, .0.rule)]
    Registry(#[from] epsilon_registry::Invalid),
    /// No gateways.
    #[error("`vm_agent.gateways`")]
    Gateways(#[from] BadGateway),
    /// A fleet without its token.
    #[error(
        "`vm_agent.token_file` has to name the file with the fleet's token (a gateway's `DATA/fleet.token`)"
    )]
    NoToken,
    /// No range of user ids.
    #[error(
        "`vm_agent.user_ids` (`{0}`) must be `FIRST-LAST`, both from 1000 to 2147483646, or `shared`"
    )]
    UserIds(String),
    /// No networks or addresses.
    #[error("`vm_agent.{key}`: `{text}` {rule}")]
    Reach {
        /// Which setting.
        key: &'static str,
        /// The part that cannot be read.
        text: String,
        /// What it has to be.
        rule: &'static str,
    },
    /// Half of TLS.
    #[error("the settings `vm_agent.tls_…` cannot be used")]
    Tls(#[from] TlsError),
}

impl Settings {
    /// Fills in the defaults and checks. `data` is the folder that all parts share; the agent's own
    /// things go to `data/vm`.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn check(self, data: &Path) -> Result<Config, ConfigError> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let starts_at_once = self.starts_at_once.unwrap_or_else(|| (2 * cores).clamp(4, 16));
        let starts_per_version =
            self.starts_per_version.unwrap_or_else(|| starts_at_once.div_ceil(2));
        let cells_max = self.cells_max.unwrap_or(CELLS_MAX);
        let member = member::read(&self)?;
        let written = Written {
            registry: self.registry,
            user: self.registry_user,
            password: None,
            password_file: self.registry_password_file,
            docker_config: self.registry_docker_config,
        };
        let (_, registries) = written.check()?;
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

/// Ids of people begin at 1000, and the kernel's last ones mean something else.
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
    fn nothing_written_means_the_defaults() {
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
    fn instances_have_user_ids_of_their_own_unless_told_otherwise() {
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
