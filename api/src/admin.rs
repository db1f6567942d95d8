//! Bodies of the control API, `/v1`: what the gateway answers and the CLI prints. `snake_case`,
//! UTC.

use crate::{
    error::ErrorBody,
    function::FunctionSpec,
    ids::{DeploymentId, FunctionName, GatewayId, ProjectName, VersionNumber, VmId},
    traffic::{Aborted, Share},
    vm::{Keep, KeepAliveSource, VmStatus},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// Body of every successful answer: `{"data": …}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Data<T> {
    /// The requested object or list.
    pub data: T,
    /// Only on lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pagination: Option<Pagination>,
}

/// The continuation of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pagination {
    /// Pass it as `?cursor=` to get the next page.
    pub next_cursor: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}

/// One function: its active version and its settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FunctionInfo {
    /// Its name.
    pub name: FunctionName,
    /// The project that deployed it.
    pub project: ProjectName,
    /// The version that serves.
    pub active_version: VersionNumber,
    /// Where to call it.
    pub url: String,
    /// Shares of a traffic split; empty when one version gets all calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
    /// Why the last split was aborted automatically; absent after a later change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aborted: Option<Aborted>,
    /// Instances on all VMs.
    pub instances: u32,
    /// How long idle instances stay; absent where the VMs' default applies and no call was
    /// measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<KeepAliveInfo>,
    /// When the active version was made.
    pub updated_at: Timestamp,
    /// Settings of the active version.
    pub spec: FunctionSpec,
}

/// How long idle instances of a function stay, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeepAliveInfo {
    /// How long an instance stays after its last call.
    #[serde(with = "crate::function::millis", rename = "idle_ms")]
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub idle: Duration,
    /// Prewarming after the last call, where calls arrive at regular intervals.
    #[serde(
        default,
        with = "crate::function::optional_millis",
        rename = "ready_after_ms",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub ready_after: Option<Duration>,
    /// Who chose these times.
    #[serde(default)]
    pub by: KeepAliveSource,
    /// Explanation for people.
    pub why: String,
}

impl From<&Keep> for KeepAliveInfo {
    fn from(keep: &Keep) -> Self {
        let Keep { idle, ready_after, by, why, .. } = keep;
        Self { idle: *idle, ready_after: *ready_after, by: *by, why: why.clone() }
    }
}

/// One version of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VersionInfo {
    /// Its number.
    pub version: VersionNumber,
    /// Whether it serves; in a split, whether it is the stable version.
    pub active: bool,
    /// Its share of the calls in a split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// URL of this version alone.
    #[serde(default)]
    pub url: String,
    /// A reference that `docker run` takes on this machine.
    pub image: String,
    /// `sha256:…` of the image's configuration.
    pub digest: String,
    /// The deployment that made it.
    pub deployment: DeploymentId,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its settings.
    pub spec: FunctionSpec,
}

/// Whether calls are sent to a VM, as seen by the gateway that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum VmStanding {
    /// Calls are sent to it.
    Ready,
    /// Joined, no report yet.
    Starting,
    /// Being drained, or drained.
    Draining,
    /// Failed a moment ago; other VMs are tried first.
    Suspect,
    /// Does not answer.
    Out,
    /// Its container engine does not answer: only calls for existing instances are sent to it.
    EngineDown,
}

impl VmStanding {
    /// All values.
    pub const ALL: [Self; 6] =
        [Self::Ready, Self::Starting, Self::Draining, Self::Suspect, Self::Out, Self::EngineDown];

    /// Text for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Draining => "draining",
            Self::Suspect => "suspect",
            Self::Out => "out",
            Self::EngineDown => "engine down",
        }
    }
}

/// One VM: its last report, and its state as seen by the gateway that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmInfo {
    /// Its last report. `images` is left out; see [`Self::images_held`].
    #[serde(flatten)]
    pub status: VmStatus,
    /// Whether calls are sent to it.
    pub standing: VmStanding,
    /// Why it is out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why the gateway that answers could not read its reports at the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Since when it has this standing.
    pub since: Timestamp,
    /// Address of its agent's listener; absent for the agent in the gateway's own process.
    #[serde(default)]
    pub address: Option<String>,
    /// Age of its last report; absent before the first one.
    #[serde(default)]
    pub report_age_ms: Option<u64>,
    /// Calls of the answering gateway that run there.
    #[serde(default)]
    pub calls_from_here: u32,
    /// Versions whose image is on the VM.
    #[serde(default)]
    pub images_held: u32,
    /// How often its stream of reports broke or could not be opened, since the gateway knows it.
    #[serde(default)]
    pub reports_missed: u64,
}

/// What a key gives access to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// The control API.
    Admin,
    /// Joining the fleet as a VM.
    Fleet,
    /// Joining it as a builder.
    Builder,
    /// What one member of the fleet may do.
    Member,
}

impl KeyKind {
    /// What the key gives access to, for people.
    pub fn opens(self) -> &'static str {
        match self {
            Self::Admin => "control API",
            Self::Fleet => "joining as a VM",
            Self::Builder => "joining as a builder",
            Self::Member => "a member's heartbeats",
        }
    }
}

/// One key that every gateway accepts, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyInfo {
    /// The key's id: the third word of its text.
    pub id: String,
    /// What it gives access to.
    pub role: KeyKind,
    /// The gateway that has it in its file; none in stores of the first release.
    #[serde(default)]
    pub gateway: Option<GatewayId>,
    /// Time of that gateway's last heartbeat; none when it is not known any more.
    #[serde(default)]
    pub gateway_seen_at: Option<Timestamp>,
    /// When it was created.
    pub created_at: Timestamp,
    /// Whether it is the key of this request.
    #[serde(default)]
    pub is_yours: bool,
}

/// One builder, as the gateway that answers sees it at this moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BuilderInfo {
    /// Its id; absent for the builder in the gateway's own process.
    #[serde(default)]
    pub id: Option<VmId>,
    /// Address of its listener; absent for the builder in the gateway's own process.
    #[serde(default)]
    pub address: Option<String>,
    /// Whether it answers.
    pub reachable: bool,
    /// Why it does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Version of its program, if it reports one.
    #[serde(default)]
    pub version: Option<String>,
    /// Builds that run or wait there, of all gateways.
    #[serde(default)]
    pub builds: Option<u32>,
    /// Builds of the answering gateway there.
    #[serde(default)]
    pub builds_from_here: u32,
}

/// Body of `POST /v1/functions/{name}/rollback`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// The version to go back to; the newest one older than the active one when absent.
    #[serde(default)]
    pub version: Option<VersionNumber>,
}

/// State of a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeploymentState {
    /// In progress.
    Running,
    /// Its versions serve.
    Done,
    /// Failed; what serves is unchanged.
    Failed,
}

impl fmt::Display for DeploymentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        })
    }
}

/// One push of a project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeploymentInfo {
    /// The deployment's id.
    pub id: DeploymentId,
    /// The project, once its name is known.
    pub project: Option<ProjectName>,
    /// Current state.
    pub state: DeploymentState,
    /// When it was received.
    pub created_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it failed.
    pub error: Option<ErrorBody>,
    /// Its origin, such as `github octo/shop main 1a2b3c4`; absent when it was sent to the control
    /// API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The functions of the project, changed or not.
    pub functions: Vec<DeployedFunction>,
}

/// One function in a deployment's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeployedFunction {
    /// Its name.
    pub name: FunctionName,
    /// The version that serves now.
    pub version: VersionNumber,
    /// Whether this deployment made that version.
    pub changed: bool,
    /// Where to call it.
    pub url: String,
}

/// The steps of a deployment, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Receive, unpack and check the archive.
    Source,
    /// Provide the runtime base image.
    Runtime,
    /// Install the dependencies.
    Dependencies,
    /// Load the code once to see its exports and settings.
    Inspect,
    /// Compose or build the images.
    Image,
    /// Load the images into the engine or push them to the registry.
    Ship,
    /// Start an instance of each new version and wait until it is healthy.
    Start,
    /// Switch traffic to the new versions.
    Activate,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Source => "source",
            Self::Runtime => "runtime",
            Self::Dependencies => "dependencies",
            Self::Inspect => "inspect",
            Self::Image => "image",
            Self::Ship => "ship",
            Self::Start => "start",
            Self::Activate => "activate",
        })
    }
}

/// One line of the answer to `POST /v1/deployments` (newline-delimited JSON). The last line is
/// `done` or `failed`; an answer that ends without one was cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum DeployEvent {
    /// The deployment was accepted.
    Accepted {
        /// The deployment's id.
        deployment: DeploymentId,
    },
    /// A step started.
    StepStarted {
        /// The step.
        step: Step,
        /// The subject of the step, for people.
        detail: String,
    },
    /// A step succeeded.
    StepDone {
        /// The step.
        step: Step,
        /// Its result, for people.
        detail: String,
        /// Duration in milliseconds.
        took_ms: u64,
    },
    /// A line of a tool's output.
    Log {
        /// The line.
        line: String,
    },
    /// The new versions serve.
    Done {
        /// The result.
        deployment: DeploymentInfo,
    },
    /// The deployment failed; what serves is unchanged.
    Failed {
        /// The reason.
        error: ErrorBody,
    },
}
