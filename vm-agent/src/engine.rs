//! The container engine in our own words: few verbs, one real one ([`docker`]), one scripted one for
//! tests ([`fake`], feature `fake`). Both pass `tests/contract.rs`, the real one first.
//!
//! A container is known by the name that we give it, so that it can be removed even when the answer to
//! its creation was lost. Verbs that take something away are idempotent: gone is what they want.

pub mod docker;
#[cfg(feature = "fake")]
pub mod fake;
mod volumes;

pub use crate::network::reach::{Ipv4Network, OpenAddress};
use crate::{config::ContainerLimits, labels::Labels};
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

    /// The name.
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

/// An image that the engine has: what [`Engine::create`] takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalImage {
    pub(crate) name: String,
    /// Folders that it declares as volumes. Each is a bounded tmpfs in a container.
    pub(crate) volumes: Vec<String>,
}

impl LocalImage {
    /// An image under the name by which its engine knows it.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), volumes: Vec::new() }
    }

    /// The same with the volumes that it declares.
    #[must_use]
    pub fn with_volumes(self, declared: impl IntoIterator<Item = String>) -> Self {
        Self { volumes: volumes::normalized(declared), ..self }
    }

    /// Why its volumes cannot be had, for the author of the image.
    pub(crate) fn unfit(&self) -> Option<String> {
        volumes::unfit(&self.volumes)
    }
}

/// What a container may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// Nothing: not even other addresses of this machine.
    None,
    /// The bridge of this name, made by [`Engine::ensure_network`].
    Bridge(String),
}

/// A container to make. Everything else is hardening that no function can turn off.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// Its name.
    pub name: ContainerName,
    /// What it runs.
    pub image: LocalImage,
    /// How we know it again.
    pub labels: Labels,
    /// Added to the image's environment.
    pub env: Vec<(String, String)>,
    /// A folder of this machine that appears as [`SOCKETS`] inside.
    pub sockets: Option<PathBuf>,
    /// A folder of this machine that appears as [`Engine::code`] inside, to read; what is mounted on it later
    /// appears there, too. It lies in a shared mount.
    pub mounts: Option<PathBuf>,
    /// A file of this machine that appears as `/etc/passwd` inside: it has a name for [`user`](Self::user).
    pub passwd: Option<PathBuf>,
    /// `uid:gid` of the code.
    pub user: String,
    /// Memory; there is no swap beyond it.
    pub memory: Size,
    /// Processor share; never more than the machine has.
    pub cpu: MilliCores,
    /// What it may reach.
    pub network: Attachment,
    /// Limits that are the same for all.
    pub limits: ContainerLimits,
}

/// Where the runtime wrapper finds its sockets, inside the container.
pub const SOCKETS: &str = "/run/epsilon";

/// A bridge network to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Its name in the engine.
    pub name: String,
    /// The name of its interface on this machine: at most 15 bytes.
    pub bridge: String,
    /// The VM that it belongs to; its label.
    pub vm: VmId,
}

/// What is behind a bridge reaches the outside, and neither this machine, nor 169.254.169.254, nor the closed networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firewall {
    /// The interface on this machine.
    pub bridge: String,
    /// Who answers for names. Only port 53 of theirs is open.
    pub resolvers: Vec<Ipv4Addr>,
    /// What is open although it is this machine or in a closed network.
    pub open: Vec<OpenAddress>,
    /// What is closed besides.
    pub closed: Vec<Ipv4Network>,
}

/// A container that exists.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its name.
    pub name: ContainerName,
    /// Its labels, all of them.
    pub labels: std::collections::HashMap<String, String>,
    /// Whether its process runs.
    pub is_running: bool,
}

/// The disk that the images lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// All of it.
    pub size: Size,
    /// What is left for those who are not root.
    pub free: Size,
}

impl Disk {
    /// How much of it is used, in percent.
    pub fn used_percent(&self) -> u8 {
        let used = self.size.get().saturating_sub(self.free.get());
        let percent = u128::from(used) * 100 / u128::from(self.size.get().max(1));
        u8::try_from(percent).unwrap_or(100)
    }
}

/// How a container's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit status.
    pub code: i64,
    /// The kernel killed it because the memory limit was reached.
    pub out_of_memory: bool,
}

impl Exit {
    /// The status of a process that ended by SIGTERM. The agent sends that to no container which loads.
    pub(crate) const ASKED: i64 = 128 + 15;
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

/// A piece of what a container wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
}

/// Stops all processes of one container and lets them go on. Both are one write to the kernel, short enough for the path
/// of a call. A stopped container that is removed dies all the same.
pub trait Freezer: Send + Sync + fmt::Debug {
    /// Stops.
    ///
    /// # Errors
    /// The kernel's own; then nothing is stopped.
    fn freeze(&self) -> std::io::Result<()>;

    /// Lets go on. On a container that goes on, it changes nothing.
    ///
    /// # Errors
    /// The kernel's own.
    fn thaw(&self) -> std::io::Result<()>;
}

/// What the engine's machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its memory.
    pub memory: Size,
    /// Its cores.
    pub cores: u32,
}

/// Why the engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It does not answer, or not in time. The same may work later.
    #[error("the container engine does not answer")]
    Down(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// There is no such container, image or network.
    #[error("the container engine does not know it: {0}")]
    NotFound(String),
    /// It understood and refused.
    #[error("the container engine refused: {0}")]
    Refused(String),
    /// It is well, but has no image: a registry did not give it.
    #[error(transparent)]
    Registry(Box<Denied>),
    /// It is well, but has no such image, and the image's name does not say where one could be had.
    #[error(
        "the image `{0}` is not on this VM, and its name names no registry to pull it from; deploy \
         its function again, or bring it back from a backup with `epsilon restore`"
    )]
    NotHere(String),
    /// What somebody else met who asked for the same, and for whom this one waited.
    #[error(transparent)]
    Same(std::sync::Arc<EngineError>),
}

/// A registry that did not give an image. For the operator.
#[derive(Debug, thiserror::Error)]
#[error("the registry `{host}` {what}; {hint}")]
pub struct Denied {
    /// Which registry.
    pub host: Host,
    /// What it did.
    pub what: String,
    /// What to do about it.
    pub hint: String,
    /// Its own words, or the engine's.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What the agent needs of a container engine. All waits are bounded inside, but for [`Engine::wait`]
/// and the stream of [`Engine::attach`], which end with their container.
#[async_trait]
pub trait Engine: Send + Sync + fmt::Debug {
    /// Answers, and says what the machine has.
    async fn ping(&self) -> Result<Machine, EngineError>;

    /// The folder with a function's code, as its wrapper sees it.
    fn code(&self) -> &str {
        "/app"
    }

    /// Whether what this machine mounts on a folder later can appear in a container that was made with it.
    fn sees_mounts(&self) -> bool {
        false
    }

    /// Makes sure that the image is here; pulls it when it is not. A name without a registry's host is never pulled:
    /// [`EngineError::NotHere`].
    async fn ensure_image(&self, image: &ImageRef) -> Result<LocalImage, EngineError>;

    /// Takes an image's name off, and with its last name the image. Only a name of ours or an image with our label, and
    /// none that a container uses.
    async fn remove_image(&self, image: &ImageRef) -> Result<ImageRemoval, EngineError>;

    /// Images of functions that can be pulled again.
    async fn pulled_images(&self) -> Result<Vec<ImageRef>, EngineError>;

    /// How full the disk with the images is; nothing where that cannot be seen from here.
    async fn disk(&self) -> Result<Option<Disk>, EngineError>;

    /// Makes a container; it does not run yet.
    async fn create(&self, spec: &ContainerSpec) -> Result<(), EngineError>;

    /// What the container writes from now on. Must be read promptly: a full pipe stops the container.
    /// On one that has ended, the stream may stay open without a word (Docker 20.10 does that).
    async fn attach(&self, name: &ContainerName)
    -> Result<BoxStream<'static, Output>, EngineError>;

    /// The container's folder with code ([`Engine::code`] of a real one) as a tar, `app/…`, whether or not it was ever
    /// started. The stream has no limit in time.
    async fn code_of(
        &self,
        _: &ContainerName,
    ) -> Result<BoxStream<'static, Result<Bytes, EngineError>>, EngineError> {
        Err(EngineError::Refused("it does not give the files of containers".into()))
    }

    /// Runs a container that was created.
    async fn start(&self, name: &ContainerName) -> Result<(), EngineError>;

    /// Gives a container that runs other limits. Of use for cells only.
    async fn update(&self, _: &ContainerName, _: Size, _: MilliCores) -> Result<(), EngineError> {
        Err(EngineError::Refused("it does not change limits".into()))
    }

    /// The way to stop and continue a running container; `None` where there is none.
    async fn freezer(&self, _: &ContainerName) -> Result<Option<Box<dyn Freezer>>, EngineError> {
        Ok(None)
    }

    /// The container's address in its bridge network.
    async fn address(&self, name: &ContainerName) -> Result<IpAddr, EngineError>;

    /// Waits for the container's process to end; at once when it has.
    async fn wait(&self, name: &ContainerName) -> Result<Exit, EngineError>;

    /// Sends SIGTERM to the container's process. Says nothing of its end.
    async fn terminate(&self, name: &ContainerName) -> Result<(), EngineError>;

    /// Kills the container if it runs, and removes it.
    async fn remove(&self, name: &ContainerName) -> Result<(), EngineError>;

    /// All containers of a VM, running or not.
    async fn list(&self, vm: &VmId) -> Result<Vec<Found>, EngineError>;

    /// Makes sure that the network is here, without traffic between its members.
    async fn ensure_network(&self, network: &NetworkSpec) -> Result<(), EngineError>;

    /// Removes the network.
    async fn remove_network(&self, name: &str) -> Result<(), EngineError>;

    /// Makes sure that what is behind the bridge reaches neither this machine nor what is closed to it.
    async fn ensure_firewall(&self, firewall: &Firewall) -> Result<(), EngineError>;

    /// Takes those rules back.
    async fn remove_firewall(&self, bridge: &str) -> Result<(), EngineError>;
}
