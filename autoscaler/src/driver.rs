//! The interface to the system that creates and terminates VMs. One trait, three drivers: `aws.rs`
//! (an EC2 Auto Scaling group), `exec.rs` (a command of the operator), and none. The loop in
//! `runner.rs` is the only caller, on one gateway at a time.

#[cfg(feature = "aws")]
pub(crate) mod aws;
pub(crate) mod exec;

use async_trait::async_trait;
use epsilon_api::ids::VmId;
use std::fmt;

/// A group of VMs that can grow and shrink. Each method has its own time limit and may be repeated,
/// and dropping its future is safe.
#[async_trait]
pub(crate) trait ScaleGroup: Send + Sync + fmt::Debug {
    /// The group's state. `seen` are the VMs that report to this gateway.
    async fn describe(&self, seen: &[VmId]) -> Result<Group, GroupError>;

    /// Orders VMs up to this number. Never called to shrink the group.
    async fn set_desired(&self, vms: u32) -> Result<(), GroupError>;

    /// Protects VMs from being removed by the group itself, or (`false`) removes that protection.
    async fn protect(&self, vms: &[VmId], protected: bool) -> Result<(), GroupError>;

    /// Terminates a VM and lowers the desired number by one.
    async fn terminate(&self, vm: &VmId) -> Result<(), GroupError>;

    /// Lets a VM terminate now that waits in a lifecycle hook. Idempotent.
    async fn complete(&self, vm: &VmId) -> Result<(), GroupError>;

    /// Extends the wait of a VM in a lifecycle hook. Idempotent.
    async fn heartbeat(&self, vm: &VmId) -> Result<(), GroupError>;
}

/// State of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Group {
    /// Number of VMs that it tries to have.
    pub(crate) desired: u32,
    /// Lower limit of the group itself.
    pub(crate) min: u32,
    /// Upper limit of the group itself.
    pub(crate) max: u32,
    /// Its VMs.
    pub(crate) instances: Vec<GroupInstance>,
}

/// One VM of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupInstance {
    /// Id of the VM.
    pub(crate) id: VmId,
    /// Phase of its life cycle.
    pub(crate) phase: Phase,
    /// Protected from being removed by the group itself. A VM that drains and is not protected
    /// leaves on our order: this mark outlives the gateway that made it.
    pub(crate) protected: bool,
}

/// Phase of a VM in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "aws"),
    expect(dead_code, reason = "only that driver reports all of them")
)]
pub(crate) enum Phase {
    /// Ordered, but not running yet.
    Starting,
    /// There.
    Serving,
    /// Waits in a lifecycle hook before it terminates.
    Waiting,
    /// Terminating; cannot be stopped any more.
    Terminating,
    /// Set aside (standby, detaching); not managed here.
    Unmanaged,
}

/// Why an operation of a group failed.
#[derive(Debug, thiserror::Error)]
#[cfg_attr(
    not(feature = "aws"),
    expect(dead_code, reason = "only that driver reports all of them")
)]
pub(crate) enum GroupError {
    /// Too many requests.
    #[error("the group throttles requests")]
    Throttled(#[source] Cause),
    /// Not permitted.
    #[error("the gateway has no permission for this operation of the group")]
    Denied(#[source] Cause),
    /// The group does not exist.
    #[error("there is no group `{0}`")]
    Unknown(String),
    /// The operation was refused.
    #[error("the group refused")]
    Refused(#[source] Cause),
    /// No answer, or not in time.
    #[error("the group does not answer")]
    NoAnswer(#[source] Cause),
}

/// The underlying error.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

impl GroupError {
    /// What the operator can do.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Throttled(_) => {
                "no action is needed: requests are sent less often until the group accepts them again"
            }
            Self::Denied(_) => {
                "give the gateway's role the `autoscaling:` actions that docs/autoscaling.md lists"
            }
            Self::Unknown(_) => {
                "compare `gateway.autoscale.group` and `region` with `aws autoscaling describe-auto-scaling-groups`"
            }
            Self::Refused(_) => {
                "see the message; the group's own limits may be narrower than those of the gateway"
            }
            Self::NoAnswer(_) => {
                "check whether the gateway reaches the group's API, or whether the command works by hand; the gateway retries"
            }
        }
    }

    /// The kind in one word, for metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Throttled(_) => "throttled",
            Self::Denied(_) => "denied",
            Self::Unknown(_) => "unknown",
            Self::Refused(_) => "refused",
            Self::NoAnswer(_) => "silent",
        }
    }
}
