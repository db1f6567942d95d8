//! The checked settings of the agent ([`Config`]): what it runs by. What an operator may write is in
//! `settings.rs` ([`Settings`]), explained in `config.default.yaml`; fixed limits are in
//! `limits.rs`.

pub(crate) mod invalid;
mod limits;
mod member;
mod removed;
mod settings;

use crate::cell::demand::Range;
use crate::config::invalid::ConfigError;
use crate::engine::limits::ContainerLimits;
use crate::keepalive::histogram::REACH;
use crate::keepalive::policy;
use crate::network::reach::Reach;
use epsilon_api::ids::VmId;
use epsilon_api::units::Bytes;
use epsilon_registry::{Access, RegistrySettings};
pub use member::MemberConfig;
pub use settings::Settings;
use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

/// Default of `cells_min`, where `cells_max` is not smaller.
const CELLS_MIN: u32 = 2;
/// The largest id that engines accept.
const LARGEST_USER_ID: u32 = 2_147_483_646;

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
    /// Credentials for registries: those of the settings, and ECR's.
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
    /// Keep-alive times.
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
    pub layer_cache: Option<PathBuf>,
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
    /// Checks the settings. `data` is the directory that all parts share; the agent's own files are
    /// in `data/vm`.
    ///
    /// # Errors
    /// The first invalid setting.
    pub fn check(self, data: &Path) -> Result<Config, ConfigError> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let starts_at_once = self.starts_at_once.unwrap_or_else(|| (2 * cores).clamp(4, 16));
        let member = member::read(&self)?;
        let registry = RegistrySettings {
            registry: self.registry,
            user: self.registry_user,
            password: None,
            password_file: self.registry_password_file,
            docker_config: self.registry_docker_config,
        };
        let (_, registries) = registry.check()?;
        let config = Config {
            folder: data.join("vm"),
            id: self.id,
            engine_socket: self.engine_socket.unwrap_or_else(epsilon_engine_socket::default_path),
            engine_timeout: limits::ENGINE_TIMEOUT,
            pull_timeout: self.pull_timeout,
            pulls_at_once: limits::PULLS_AT_ONCE,
            registries,
            start_timeout: self.start_timeout,
            memory: self.memory,
            starts_at_once,
            // A burst on one function leaves room for the first call of another.
            starts_per_version: starts_at_once.div_ceil(2),
            cells: Range {
                min: self.cells_min.unwrap_or(CELLS_MIN.min(self.cells_max)),
                max: self.cells_max,
            },
            queue_wait: self.queue_wait,
            queue_depth: limits::QUEUE_DEPTH,
            connection_idle: limits::CONNECTION_IDLE,
            keep: policy::Settings {
                default: self.instance_idle,
                min: limits::INSTANCE_IDLE_MIN,
                // The range in which pauses are measured. Memory that is not needed otherwise costs
                // nothing; when it is, the instance of lowest value is evicted at once.
                max: REACH,
            },
            freeze_after: Some(self.freeze_after).filter(|after| !after.is_zero()),
            log_size: self.log_size,
            log_line: limits::LOG_LINE,
            disk_limit: self.disk_limit,
            disk_look: self.disk_look,
            layers_size: self.layers_size,
            layers_at_once: limits::LAYERS_AT_ONCE,
            layer_cache: self.layer_cache,
            dangerous_registry_plain_http: self.dangerous_registry_plain_http,
            reconcile_every: limits::RECONCILE_EVERY,
            remove_timeout: self.remove_timeout,
            dangerous_allow_metadata: self.dangerous_allow_metadata,
            user_ids: user_ids(&self.user_ids)?,
            reach: Reach::read(&self.closed_networks, &self.open_addresses)?,
            limits: ContainerLimits {
                runtime: self.engine_runtime,
                pids: self.pids_limit,
                tmp_size: self.tmp_size,
                open_files: limits::OPEN_FILES,
                seccomp: self.seccomp,
            },
            member,
        };
        config.in_range()
    }
}

impl Config {
    /// Checks the ranges of all numbers.
    fn in_range(self) -> Result<Self, ConfigError> {
        let second = Duration::from_secs(1);
        let rules = [
            ("pull_timeout", self.pull_timeout >= second, "1s"),
            ("start_timeout", self.start_timeout >= Duration::from_millis(100), "100ms"),
            ("starts_at_once", self.starts_at_once >= 1, "1"),
            ("cells_max", self.cells.max >= self.cells.min, "`cells_min`"),
            ("instance_idle", !self.keep.default.is_zero(), "1ms"),
            ("pids_limit", self.limits.pids >= 16, "16"),
            ("tmp_size", self.limits.tmp_size >= Bytes::mib(1), "1MiB"),
            ("log_size", self.log_size >= Bytes(64 << 10), "64KiB"),
            ("disk_look", self.disk_look >= Duration::from_millis(10), "10ms"),
            ("layers_size", self.layers_size >= Bytes::mib(1), "1MiB"),
            ("remove_timeout", self.remove_timeout >= second, "1s"),
            ("memory", self.memory.is_none_or(|size| size >= Bytes::mib(16)), "16MiB"),
        ];
        if self.disk_limit > 100 {
            return Err(ConfigError::TooLarge { key: "disk_limit", most: "100" });
        }
        match rules.into_iter().find(|(_, good, _)| !good) {
            Some((key, _, least)) => Err(ConfigError::TooSmall { key, least }),
            None => Ok(self),
        }
    }
}

/// Parses `user_ids`. Ids of people begin at 1000; the largest ones are beyond what engines accept.
fn user_ids(written: &str) -> Result<Option<RangeInclusive<u32>>, ConfigError> {
    let range = match written.trim() {
        "shared" => return Ok(None),
        text => text
            .split_once('-')
            .and_then(|(first, last)| Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)),
    };
    let good = |range: &RangeInclusive<u32>| {
        !range.is_empty() && *range.start() >= 1000 && *range.end() <= LARGEST_USER_ID
    };
    let range = range.filter(good);
    range.map(Some).ok_or_else(|| ConfigError::UserIds(written.to_owned()))
}

#[cfg(test)]
mod tests;
