//! The answer to a webhook delivery. Read by people at GitHub, under the hook's recent deliveries.

use crate::ids::DeploymentId;
use serde::{Deserialize, Serialize};

/// The answer to a delivery that was understood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HookAnswer {
    /// The result.
    pub result: HookResult,
    /// The result, for people.
    pub message: String,
    /// The deployment that it started; it may still be queued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<DeploymentId>,
}

/// The result of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum HookResult {
    /// A `ping`: the secret is right.
    Pong,
    /// Nothing to deploy.
    Ignored,
    /// Its commit is being deployed.
    Accepted,
}
