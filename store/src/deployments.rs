//! Deployments, the webhook deliveries that start them, and what they prepare and activate. The
//! trait and its types; `sql/operations/deployments.rs` implements it.

use crate::{Page, Paged, StoreError};
use async_trait::async_trait;
use epsilon_api::{
    admin::DeploymentState,
    build::Built,
    error::ErrorBody,
    function::Version,
    ids::{DeploymentId, FunctionName, GatewayId, ProjectName, VersionNumber},
};
use jiff::Timestamp;
use std::{fmt, time::Duration};

/// A stored deployment: one push of a project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Its id.
    pub id: DeploymentId,
    /// The project, once the build has reported its name.
    pub project: Option<ProjectName>,
    /// Current state.
    pub state: DeploymentState,
    /// When it was received.
    pub created_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it failed.
    pub error: Option<ErrorBody>,
    /// Origin, for people; none when it was sent to the control API.
    pub source: Option<String>,
    /// Its functions, changed or not; empty unless it is done.
    pub functions: Vec<Deployed>,
}

/// A webhook delivery of a push, and the deployment that it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The project of the webhook.
    pub project: ProjectName,
    /// GitHub's id of the delivery.
    pub id: String,
    /// SHA-256 of its payload, in hexadecimal.
    pub digest: String,
    /// The deployment that it starts.
    pub deployment: DeploymentId,
    /// Origin of the deployment, for people.
    pub source: String,
    /// When it was received.
    pub seen_at: Timestamp,
}

/// One function in a deployment's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployed {
    /// Its name.
    pub name: FunctionName,
    /// The version that serves.
    pub version: VersionNumber,
    /// Whether the deployment made that version.
    pub changed: bool,
}

/// What activation will do to one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// A new version that does not serve yet, or the active one when nothing changed.
    pub version: Version,
    /// Whether it is new.
    pub changed: bool,
}

/// Deployments, the webhook deliveries that start them, and what they prepare and activate. As
/// [`Store`](crate::Store) says, each method is one transaction.
#[async_trait]
pub trait DeploymentStore: Send + Sync + fmt::Debug {
    /// Records that a deployment was received and which gateway runs it. Idempotent.
    async fn begin_deployment(
        &self,
        id: &DeploymentId,
        gateway: &GatewayId,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Records a delivery for the time `keep`, and its deployment. A delivery with the id or
    /// payload of a recorded one of the project starts nothing, unless the deployment of that one
    /// failed; then the earlier deployment is returned.
    async fn begin_delivery(
        &self,
        delivery: &Delivery,
        gateway: &GatewayId,
        keep: Duration,
    ) -> Result<Option<DeploymentId>, StoreError>;

    /// Allocates a version number for each function whose image or settings differ from its active
    /// version. Nothing serves yet. An allocated number is never reused, whatever happens to the
    /// deployment.
    async fn prepare(
        &self,
        id: &DeploymentId,
        built: &Built,
        now: Timestamp,
    ) -> Result<Vec<Prepared>, StoreError>;

    /// Activates every new version that was prepared, in one step. Unchanged functions keep the
    /// version that is active by then; the result names it.
    async fn activate(&self, id: &DeploymentId, now: Timestamp) -> Result<Deployment, StoreError>;

    /// Fails a deployment; deletes what was prepared.
    async fn fail_deployment(
        &self,
        id: &DeploymentId,
        error: &ErrorBody,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Fails the deployments that no gateway runs any more: those of the given gateway, which has
    /// just started, and those of gateways without a heartbeat since `dead_before`. So a gateway
    /// sends a heartbeat before it begins a deployment. Returns how many there were.
    async fn fail_unfinished(
        &self,
        gateway: &GatewayId,
        dead_before: Timestamp,
        error: &ErrorBody,
        now: Timestamp,
    ) -> Result<u64, StoreError>;

    /// One deployment.
    async fn deployment(&self, id: &DeploymentId) -> Result<Deployment, StoreError>;

    /// Deployments, newest first.
    async fn deployments(&self, page: &Page) -> Result<Paged<Deployment>, StoreError>;
}
