//! What a webhook's delivery is answered with. Read by people at the hub, under the hook's recent deliveries.

use crate::ids::DeploymentId;
use serde::{Deserialize, Serialize};

/// The answer to a delivery that was understood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookAnswer {
    /// What came of it.
    pub result: HookResult,
    /// The same in words.
    pub message: String,
    /// The deployment that it began; it may still wait for its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<DeploymentId>,
}

/// What came of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookResult {
    /// A `ping`: the secret is right.
    Pong,
    /// There is nothing to deploy.
    Ignored,
    /// Its commit is deployed.
    Accepted,
}
