//! State of a gateway's autoscaler: the body of `GET /v1/autoscaler`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The autoscaler of the gateway that answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AutoscalerInfo {
    /// `none`, `exec` or `aws-asg`.
    pub driver: String,
    /// Whether this gateway acts.
    pub state: AutoscalerState,
    /// Dry run: decisions are shown, not carried out.
    pub dry_run: bool,
    /// VMs wanted.
    pub wanted: u32,
    /// VMs that the group has or is starting.
    pub current: u32,
    /// VMs of the group that take calls.
    pub ready: u32,
    /// Why so many are wanted, for people.
    pub reason: String,
    /// Concurrency slots needed: the mean of the stable window.
    pub demand: f64,
    /// Concurrency slots available.
    pub places: f64,
    /// Whether the short (panic) window decides.
    pub panicking: bool,
    /// What keeps it from acting, and what to do about it.
    pub problem: Option<String>,
    /// The last decisions of this gateway, newest first.
    pub decisions: Vec<AutoscalerDecision>,
}

/// Whether a gateway's autoscaler acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum AutoscalerState {
    /// No driver is configured: decisions are computed and shown.
    #[default]
    Watching,
    /// Another gateway is the leader.
    Following,
    /// It is the leader.
    Leading,
    /// The store does not answer, so the leader is unknown.
    StoreAway,
    /// It is the leader, and the group does not carry out its requests.
    GroupAway,
}

impl AutoscalerState {
    /// The value in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Watching => "watching",
            Self::Following => "following",
            Self::Leading => "leading",
            Self::StoreAway => "store_away",
            Self::GroupAway => "group_away",
        }
    }
}

impl fmt::Display for AutoscalerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One decision: a new number of VMs, or an action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AutoscalerDecision {
    /// When it was made.
    pub at: Timestamp,
    /// VMs wanted then.
    pub wanted: u32,
    /// VMs that the group had.
    pub current: u32,
    /// Why, for people.
    pub reason: String,
    /// Actions carried out, or planned with `dry_run`, for people.
    pub steps: Vec<String>,
    /// Why an action failed.
    pub problem: Option<String>,
}
