//! Limits that are the same for every operator, with their reasons, as [`super::Settings`] carries
//! them: a test of the whole builder reaches them with other numbers.

use std::time::Duration;

/// Fixed limits of the builder.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct Limits {
    /// How images get into the engine; when it fails, the methods after it are tried.
    pub image_transfer: ImageTransfer,
    /// Longest time for pulling an image.
    pub pull_timeout: Duration,
    /// Processes and threads of one install, of a `build` command, and of a Dockerfile's steps.
    pub install_pids: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            image_transfer: ImageTransfer::Lacking,
            pull_timeout: Duration::from_secs(5 * 60),
            install_pids: 512,
        }
    }
}

/// How images get into the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImageTransfer {
    /// An archive with the layers that the engine lacks. Engines with the classic store accept
    /// that.
    Lacking,
    /// An archive with all layers.
    Whole,
    /// Layers unpacked into a container, which is then committed.
    Commit,
}

/// Longest wait for the engine to begin an answer: loading a large image on a slow disk is silent
/// until it is done.
pub(super) const ENGINE_TIMEOUT: Duration = Duration::from_secs(2 * 60);
/// How long a public registry may take before the base is made from the distribution's packages
/// instead.
pub(super) const REGISTRY_WAIT: Duration = Duration::from_secs(8);
/// CPUs and processes for inspecting a project's exports: every deployment waits for it.
pub(super) const INSPECT_MILLICORES: u32 = 2000;
pub(super) const INSPECT_PIDS: u32 = 128;
/// One build, its wait for a slot included: a Dockerfile, an install and their transfers.
pub(super) const BUILD_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Builds that may wait for a slot; gateways send more to another builder.
pub(super) const BUILDS_WAITING: usize = 16;
/// Part of `cache_size` for layers that are cached for this machine's own agent. Code layers are
/// small; an agent takes missing ones from the engine, which is slower.
pub(super) const AGENT_CACHE_PART: u64 = 5;
/// How long an untagged image stays in a repository of ECR.
pub(super) const KEEP_UNTAGGED: Duration = Duration::from_secs(14 * 24 * 3600);
/// Connections of gateways: each build has one.
pub(super) const MAX_CONNECTIONS: usize = 64;
/// A TLS handshake and a request's head.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// An idle connection of a gateway: longer than gateways keep one.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
