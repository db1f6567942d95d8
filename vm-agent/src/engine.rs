//! The container engine as a trait: few verbs, a real engine ([`docker`]) and a scripted one for
//! tests ([`fake`], feature `fake`). Both pass `tests/contract.rs`, the real one first.
//!
//! A container is identified by the name that we give it, so that it can be removed even when the
//! answer to its creation was lost. Verbs that remove something are idempotent: what is gone is
//! removed.

pub mod docker;
#[cfg(feature = "fake")]
pub mod fake;
pub(crate) mod limits;
mod volumes;

use crate::labels::Labels;
pub use crate::network::reach::{Ipv4Network, OpenAddress};
use async_trait::async_trait;
use bytes::Bytes;
use epsilon_api::{
    function::ImageRef,
    ids::VmId,
    units::{Bytes as Size, MilliCores},
    vm::ImageRemoval,
};
use epsilon_registry::Host;
use futures_util::stream::BoxStream;
use limits::ContainerLimits;
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
};

/// The name of a container; valid in every engine by construction.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ContainerName(Arc<str>);

impl ContainerName {
    /// Takes a name that is a letter or digit, then letters, digits, `_`, `.` or `-`.
    ///
    /// # Errors
    /// [`EngineError::Refused`] for any other text: it would change the meaning of a request.
    pub fn parse(text: &str) -> Result<Self, EngineError> {
        let good = text.len() <= 200
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if good {
            Ok(Self(text.into()))
        } else {
            Err(EngineError::Refused("bad container name".into()))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// An image that the engine has; input of [`Engine::create`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalImage {
    pub(crate) name: String,
    /// Paths that it declares as volumes. Each becomes a bounded tmpfs in a container.
    pub(crate) volumes: Vec<String>,
}

impl LocalImage {
    /// An image by its name in the engine.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), volumes: Vec::new() }
    }

    /// Sets the volumes that it declares.
    #[must_use]
    pub fn with_volumes(self, declared: impl IntoIterator<Item = String>) -> Self {
        Self { volumes: volumes::normalized(declared), ..self }
    }

    /// Why its volumes cannot be provided, for the author of the image.
    pub(crate) fn unfit(&self) -> Option<String> {
        volumes::unfit(&self.volumes)
    }
}

/// What a container can reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// No network, not even other addresses of this machine.
    None,
    /// The bridge network of this name, made by [`Engine::ensure_network`].
    Bridge(String),
}

/// A container to create. Everything else is hardening that no function can turn off.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// The container's name.
    pub name: ContainerName,
    /// The image that it runs.
    pub image: LocalImage,
    /// Labels to recognise it by.
    pub labels: Labels,
    /// Added to the image's environment.
    pub env: Vec<(String, String)>,
    /// A directory of this machine, mounted at [`SOCKETS`].
    pub sockets: Option<PathBuf>,
    /// A directory of this machine, mounted read-only at [`Engine::code`]; what is mounted on it
    /// later appears inside, too. It is in a shared mount.
    pub mounts: Option<PathBuf>,
    /// A file of this machine, mounted at `/etc/passwd`: it has a name for [`user`](Self::user).
    pub passwd: Option<PathBuf>,
    /// `uid:gid` of the code.
    pub user: String,
    /// Memory limit; there is no swap beyond it.
    pub memory: Size,
    /// CPU limit; never more than the machine has.
    pub cpu: MilliCores,
    /// The network.
    pub network: Attachment,
    /// Limits that are the same for all containers.
    pub limits: ContainerLimits,
}

/// Directory of the wrapper's sockets, inside the container.
pub const SOCKETS: &str = "/run/epsilon";

/// A bridge network to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSpec {
    /// The name in the engine.
    pub name: String,
    /// The name of its interface on this machine: at most 15 bytes.
    pub bridge: String,
    /// The VM that it belongs to; its label.
    pub vm: VmId,
}

/// Rules for the containers of a bridge: they reach the outside, but not this machine,
/// 169.254.169.254, or closed networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firewall {
    /// The bridge's interface on this machine.
    pub bridge: String,
    /// DNS resolvers. Only their port 53 is open.
    pub resolvers: Vec<Ipv4Addr>,
    /// Exceptions for addresses of this machine or of closed networks.
    pub open: Vec<OpenAddress>,
    /// Networks that are closed.
    pub closed: Vec<Ipv4Network>,
}

/// An existing container.
#[derive(Clone, Debug)]
pub struct ContainerInfo {
    /// The container's name.
    pub name: ContainerName,
    /// All of its labels.
    pub labels: std::collections::HashMap<String, String>,
    /// Whether its process runs.
    pub is_running: bool,
}

/// The disk that the images are stored on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its size, without what is reserved for root.
    pub size: Size,
    /// Free space for users other than root.
    pub free: Size,
}

impl Disk {
    /// The used share of it, in percent.
    pub fn used_percent(&self) -> u8 {
        let used = self.size.get().saturating_sub(self.free.get());
        let percent = u128::from(used) * 100 / u128::from(self.size.get().max(1));
        u8::try_from(percent).unwrap_or(100)
    }
}

/// How a container's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit status.
    pub code: i64,
    /// Whether the kernel killed it because the memory limit was reached.
    pub out_of_memory: bool,
}

impl Exit {
    /// Status of a process that ended by SIGTERM. The agent never sends it to a container that is
    /// loading.
    pub(crate) const SIGTERM: i64 = 128 + 15;
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.out_of_memory {
            write!(f, "out of memory (exit status {})", self.code)
        } else {
            write!(f, "exit status {}", self.code)
        }
    }
}

/// A piece of a container's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
}

/// Freezes and thaws all processes of one container. Both are one write to the kernel, short enough
/// for the path of a call. A frozen container can be removed.
pub trait Freezer: Send + Sync + fmt::Debug {
    /// Freezes the processes.
    ///
    /// # Errors
    /// The kernel's error; then nothing is frozen.
    fn freeze(&self) -> std::io::Result<()>;

    /// Thaws the processes. Has no effect if they are not frozen.
    ///
    /// # Errors
    /// The kernel's error.
    fn thaw(&self) -> std::io::Result<()>;
}

/// Resources of the engine's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The memory.
    pub memory: Size,
    /// The number of cores.
    pub cores: u32,
}

/// Why an engine request failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine does not answer, or not in time. The same may work later.
    #[error("the container engine does not answer")]
    Down(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// There is no such container, image or network.
    #[error("the container engine does not know it: {0}")]
    NotFound(String),
    /// The engine refused the request.
    #[error("the container engine refused: {0}")]
    Refused(String),
    /// The engine works, but a registry did not provide the image.
    #[error(transparent)]
    Registry(Box<ImageUnavailable>),
    /// The engine works but does not have this image, and the image's name names no registry to
    /// pull it from.
    #[error(
        "the image `{0}` is not on this VM, and its name names no registry to pull it from; deploy \
         its function again, or bring it back from a backup with `epsilon restore`"
    )]
    NotHere(String),
    /// The error of a concurrent request for the same image, which this one shared.
    #[error(transparent)]
    Shared(std::sync::Arc<EngineError>),
}

/// A registry that did not provide an image. For the operator.
#[derive(Debug, thiserror::Error)]
#[error("the registry `{host}` {what}; {hint}")]
pub struct ImageUnavailable {
    /// The registry.
    pub host: Host,
    /// What it did.
    pub what: String,
    /// What to do about it.
    pub hint: String,
    /// The registry's error, or the engine's.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What the agent needs of a container engine. All waits are bounded inside, except
/// [`Engine::wait`] and the stream of [`Engine::attach`], which end with their container.
#[async_trait]
pub trait Engine: Send + Sync + fmt::Debug {
    /// Checks that the engine answers; returns the machine's resources.
    async fn ping(&self) -> Result<Machine, EngineError>;

    /// The directory of a function's code inside a container.
    fn code(&self) -> &str {
        "/app"
    }

    /// Whether later mounts on a container's directory can appear inside.
    fn sees_mounts(&self) -> bool {
        false
    }

    /// Makes sure that the image is here; pulls it when it is not. An image whose name has no
    /// registry's host is never pulled: [`EngineError::NotHere`].
    async fn ensure_image(&self, image: &ImageRef) -> Result<LocalImage, EngineError>;

    /// Removes an image's name, and with the last name the image. Only names of ours or images with
    /// our label, and none that a container uses.
    async fn remove_image(&self, image: &ImageRef) -> Result<ImageRemoval, EngineError>;

    /// Images of functions that can be pulled again.
    async fn pulled_images(&self) -> Result<Vec<ImageRef>, EngineError>;

    /// Usage of the disk with the images; `None` where it cannot be read from here.
    async fn disk(&self) -> Result<Option<Disk>, EngineError>;

    /// Creates a container without starting it.
    async fn create(&self, spec: &ContainerSpec) -> Result<(), EngineError>;

    /// The container's output from now on. It must be read promptly: a full pipe blocks the
    /// container. On a container that has ended, the stream may stay open without data (Docker
    /// 20.10 does that).
    async fn attach(&self, name: &ContainerName)
    -> Result<BoxStream<'static, Output>, EngineError>;

    /// The container's code directory ([`Engine::code`] of a real one) as a tar, `app/…`, whether
    /// or not it was ever started. The stream has no time limit.
    async fn code_of(
        &self,
        _: &ContainerName,
    ) -> Result<BoxStream<'static, Result<Bytes, EngineError>>, EngineError> {
        Err(EngineError::Refused("it does not give the files of containers".into()))
    }

    /// Starts a created container.
    async fn start(&self, name: &ContainerName) -> Result<(), EngineError>;

    /// Changes the limits of a running container. Used for cells only.
    async fn update(&self, _: &ContainerName, _: Size, _: MilliCores) -> Result<(), EngineError> {
        Err(EngineError::Refused("it does not change limits".into()))
    }

    /// The freezer of a running container; `None` where there is none.
    async fn freezer(&self, _: &ContainerName) -> Result<Option<Box<dyn Freezer>>, EngineError> {
        Ok(None)
    }

    /// The container's address in its bridge network.
    async fn address(&self, name: &ContainerName) -> Result<IpAddr, EngineError>;

    /// Waits for the container's process to end; returns at once when it has.
    async fn wait(&self, name: &ContainerName) -> Result<Exit, EngineError>;

    /// Sends SIGTERM to the container's process. Does not wait for its end.
    async fn terminate(&self, name: &ContainerName) -> Result<(), EngineError>;

    /// Kills the container if it runs, and removes it.
    async fn remove(&self, name: &ContainerName) -> Result<(), EngineError>;

    /// All containers of a VM, running or not.
    async fn list(&self, vm: &VmId) -> Result<Vec<ContainerInfo>, EngineError>;

    /// Makes sure that the network exists, without traffic between its members.
    async fn ensure_network(&self, network: &NetworkSpec) -> Result<(), EngineError>;

    /// Removes the network.
    async fn remove_network(&self, name: &str) -> Result<(), EngineError>;

    /// Makes sure that containers of the bridge reach neither this machine nor closed networks.
    async fn ensure_firewall(&self, firewall: &Firewall) -> Result<(), EngineError>;

    /// Removes those rules.
    async fn remove_firewall(&self, bridge: &str) -> Result<(), EngineError>;
}
