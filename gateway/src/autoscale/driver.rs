//! What the autoscaler asks of whoever makes and ends VMs. One trait, three drivers: `aws.rs` (an EC2 Auto
//! Scaling group), `exec.rs` (a command of the operator's), and none at all. The loop in `runner.rs` is the
//! only caller, from one gateway at a time.

#[cfg(feature = "aws")]
pub(crate) mod aws;
pub(crate) mod exec;

use async_trait::async_trait;
use epsilon_api::ids::VmId;
use std::fmt;

/// A group of VMs that can be made larger and smaller. Each method has a limit of its own; each may be
/// repeated, and dropping its future is safe.
#[async_trait]
pub(crate) trait ScaleGroup: Send + Sync + fmt::Debug {
    /// How the group stands. `seen` are the VMs that report to this gateway.
    async fn describe(&self, seen: &[VmId]) -> Result<Group, GroupError>;

    /// Orders VMs until there are so many. Never called to make the group smaller.
    async fn set_desired(&self, vms: u32) -> Result<(), GroupError>;

    /// Marks VMs as not to be (or, `false`, free to be) taken away by the group itself.
    async fn protect(&self, vms: &[VmId], protected: bool) -> Result<(), GroupError>;

    /// Ends a VM, with one VM wanted less.
    async fn terminate(&self, vm: &VmId) -> Result<(), GroupError>;

    /// Lets a VM that waits for it end now. Done already is fine.
    async fn complete(&self, vm: &VmId) -> Result<(), GroupError>;

    /// Asks for more time for a VM that waits to end. Ended already is fine.
    async fn heartbeat(&self, vm: &VmId) -> Result<(), GroupError>;
}

/// How a group stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Group {
    /// VMs that it tries to have.
    pub(crate) desired: u32,
    /// Its own limits.
    pub(crate) min: u32,
    /// Its own limits.
    pub(crate) max: u32,
    /// Its VMs.
    pub(crate) instances: Vec<GroupInstance>,
}

/// One VM of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupInstance {
    /// Its id.
    pub(crate) id: VmId,
    /// How far it is.
    pub(crate) phase: Phase,
    /// Not to be taken away by the group itself. What drains and is not protected is leaving by our own
    /// order: this mark outlives the gateway that made it.
    pub(crate) protected: bool,
}

/// How far a VM of a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "aws"), expect(dead_code, reason = "only that driver tells all of them"))]
pub(crate) enum Phase {
    /// Ordered, not there yet.
    Starting,
    /// There.
    Serving,
    /// About to end; waits until it is let go.
    Waiting,
    /// On its way out, beyond our reach.
    Ending,
    /// Set aside by somebody (standby, detaching); not ours to touch.
    Aside,
}

/// Why a group did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[cfg_attr(not(feature = "aws"), expect(dead_code, reason = "only that driver tells all of them"))]
pub(crate) enum GroupError {
    /// Too many questions.
    #[error("the group answers no more questions for now")]
    Throttled(#[source] Cause),
    /// Not allowed.
    #[error("the gateway may not ask the group for this")]
    Denied(#[source] Cause),
    /// There is no such group.
    #[error("there is no group `{0}`")]
    Unknown(String),
    /// It does not want to.
    #[error("the group refused")]
    Refused(#[source] Cause),
    /// No answer, or none in time.
    #[error("the group does not answer")]
    Silent(#[source] Cause),
}

/// What was behind it.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

impl GroupError {
    /// What the operator can do.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Throttled(_) => "nothing: it is asked less often until it answers again",
            Self::Denied(_) => {
                "give the gateway's role the `autoscaling:` actions that docs/autoscaling.md lists"
            }
            Self::Unknown(_) => {
                "compare `gateway.autoscale.group` and `region` with `aws autoscaling describe-auto-scaling-groups`"
            }
            Self::Refused(_) => "read its words; the group's own limits may be narrower than ours",
            Self::Silent(_) => {
                "see whether the gateway reaches the group's API or the command works by hand; it is tried again"
            }
        }
    }

    /// One word, for metrics.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Throttled(_) => "throttled",
            Self::Denied(_) => "denied",
            Self::Unknown(_) => "unknown",
            Self::Refused(_) => "refused",
            Self::Silent(_) => "silent",
        }
    }
}
