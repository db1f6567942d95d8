//! The part of a container's limits that does not depend on the function: the operator's settings,
//! as the engine gets them.

use epsilon_api::units::Bytes;
use serde::Deserialize;

/// The part of a container's limits that does not depend on the function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerLimits {
    /// OCI runtime of the engine; `None`: its default.
    pub runtime: Option<String>,
    /// Limit of processes and threads.
    pub pids: u32,
    /// Size of `/tmp`.
    pub tmp_size: Bytes,
    /// Limit of open files.
    pub open_files: u32,
    /// The seccomp profile.
    pub seccomp: Seccomp,
}

/// Source of an instance's seccomp profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    /// The profile of this release.
    #[default]
    Own,
    /// The container engine's default.
    Engine,
}
