//! What a gateway's autoscaler shows of itself: the body of `GET /v1/autoscaler`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How the autoscaler of the gateway that was asked stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AutoscalerInfo {
    /// `none`, `exec` or `aws-asg`.
    pub driver: String,
    /// Whether this gateway acts.
    pub state: AutoscalerState,
    /// It only says what it would do.
    pub dry_run: bool,
    /// VMs wanted.
    pub wanted: u32,
    /// VMs that the group has or is about to have.
    pub current: u32,
    /// VMs of the group that take calls.
    pub ready: u32,
    /// Why so many are wanted, in words.
    pub reason: String,
    /// Places needed: the mean of the stable window.
    pub demand: f64,
    /// Places that there are.
    pub places: f64,
    /// Whether the short window counts.
    pub panicking: bool,
    /// What keeps it from acting, with what to do about it.
    pub problem: Option<String>,
    /// The last decisions of this gateway, newest first.
    pub decisions: Vec<AutoscalerDecision>,
}

/// Whether a gateway's autoscaler acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AutoscalerState {
    /// There is no driver: it computes and shows.
    #[default]
    Watching,
    /// Another gateway is the leader.
    Following,
    /// It is the leader.
    Leading,
    /// The store does not answer, so nobody knows who leads.
    StoreAway,
    /// It is the leader and the group does not do what it is asked.
    GroupAway,
}

impl AutoscalerState {
    /// As it is written.
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

/// One decision: another number was wanted, or something was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutoscalerDecision {
    /// When.
    pub at: Timestamp,
    /// VMs wanted then.
    pub wanted: u32,
    /// VMs that the group had.
    pub current: u32,
    /// Why, in words.
    pub reason: String,
    /// What was done, or would have been with `dry_run`, in words.
    pub steps: Vec<String>,
    /// What went wrong with it.
    pub problem: Option<String>,
}
