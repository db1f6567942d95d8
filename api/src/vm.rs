//! One VM as the gateway sees it. In `epsilon up` the agent itself implements this trait; in a
//! fleet, a client of the agent's listener does. The gateway cannot see which.

use crate::{
    body::{BodyProgress, CallBody},
    error::VmError,
    function::{ImageRef, Version},
    ids::{FunctionName, InstanceId, RequestId, VersionId, VersionNumber, VmId},
    log::{LogQuery, LogRecord},
    units::{Bytes, MilliCores},
};
use futures_util::{future::BoxFuture, stream::BoxStream};
use http::{HeaderMap, Request, Response, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{any::Any, fmt, sync::Arc, time::Duration};

/// A call sent to a VM.
///
/// The request's URI is what the function sees: path after its name, and query. Hop-by-hop headers
/// and headers of the platform are removed already. An upgrade keeps its `Connection`/`Upgrade`
/// headers.
pub struct Call {
    /// The version to run.
    pub version: Arc<Version>,
    /// The call's id.
    pub request_id: RequestId,
    /// Whether the call may wait in this VM for a concurrency slot or for memory. `false` when
    /// there is another VM to try: then a call that cannot begin at once (or by a start that has
    /// room) is refused, with nothing executed.
    pub may_wait: bool,
    /// Method, path, headers and body as the function sees them.
    pub request: Request<CallBody>,
    /// Progress of the request's body. `None`: it is complete, or there is none.
    pub upload: Option<BodyProgress>,
    /// Receives interim answers (1xx) that the function sends before its answer. `None`: they are
    /// dropped.
    pub interim: Option<Arc<dyn InterimSink>>,
}

/// Receives interim answers of a call; see [`Call::interim`]. Implementations bound them: a
/// function may send any number.
pub trait InterimSink: Send + Sync {
    /// An interim answer arrived.
    fn interim(&self, status: StatusCode, headers: HeaderMap);
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("version", &self.version.id())
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}

/// The function's answer.
///
/// Dropping the response's body before its end means that the caller hung up; the VM then settles
/// the call on its own. For an upgrade (101) the response carries hyper's `OnUpgrade` and a
/// [`Held`] in its extensions; the task that copies the bytes keeps the [`Held`] until the copy is
/// over.
pub struct Answer {
    /// Status, headers and body from the function.
    pub response: Response<CallBody>,
    /// Time spent in the VM.
    pub spent: Spent,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.response.status())
            .field("spent", &self.spent)
            .finish_non_exhaustive()
    }
}

/// Keeps an instance leased for as long as it exists. Stored in a response's extensions.
#[derive(Clone)]
pub struct Held(pub Arc<dyn Any + Send + Sync>);

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held")
    }
}

/// Time of a call spent inside the VM; the source of `server-timing`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Waiting for a concurrency slot in an instance that exists or is being started.
    pub queue: Duration,
    /// Starting the instance that this call waited for, when it did.
    pub start: Option<StartPhases>,
    /// From the hand-over to the instance until the head of its answer.
    pub exec: Duration,
}

/// Phases of one start of an instance. Those that were not part of it are zero: a start in a cell
/// has `layers`, `cell` and `init`; one from an image `pull`, `create`, `start` and `init`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartPhases {
    /// Pulling the image to this VM.
    pub pull: Duration,
    /// Fetching the layers of the code to this VM.
    pub layers: Duration,
    /// Taking a cell and mounting the layers into it.
    pub cell: Duration,
    /// Creating the container in the engine.
    pub create: Duration,
    /// Starting the container until its runtime listens.
    pub start: Duration,
    /// Loading the user's code.
    pub init: Duration,
}

impl StartPhases {
    /// Sum of all phases.
    pub fn total(&self) -> Duration {
        self.pull + self.layers + self.cell + self.create + self.start + self.init
    }
}

/// The report of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmStatus {
    /// The VM's id.
    pub id: VmId,
    /// Accepts calls, or is drained.
    pub state: VmState,
    /// A number that changes with each start of its agent: what the agent knew before is forgotten.
    #[serde(default)]
    pub boot: u64,
    /// Version of its program; absent for releases that do not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Earliest expiry of the certificates that its agent loaded at its start; none where the fleet
    /// has no TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_ends_at: Option<Timestamp>,
    /// CPUs of the machine.
    #[serde(default)]
    pub cpu_millicores: MilliCores,
    /// Memory for instances in all.
    pub memory_bytes: Bytes,
    /// Memory reserved by instances.
    pub memory_used_bytes: Bytes,
    /// Running calls.
    pub calls_active: u32,
    /// Calls waiting for a concurrency slot.
    pub calls_waiting: u32,
    /// The instances, oldest first.
    pub instances: Vec<InstanceStatus>,
    /// Cells: booted containers without a function.
    #[serde(default)]
    pub cells: CellCount,
    /// How long idle instances stay here, for versions whose pauses were measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keeps: Vec<Keep>,
    /// Versions whose image is on this VM, as far as the agent has looked; most recently used
    /// first.
    #[serde(default)]
    pub images: Vec<VersionId>,
}

/// The cells of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CellCount {
    /// Ready to be assigned.
    pub ready: u32,
    /// Still booting.
    pub booting: u32,
}

/// How long a VM keeps idle instances of a version, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Keep {
    /// The function.
    pub function: FunctionName,
    /// Its version.
    pub version: VersionNumber,
    /// How long an instance stays after its last call.
    #[serde(with = "crate::function::millis", rename = "idle_ms")]
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub idle: Duration,
    /// Prewarming after the last call; `None` where that would not pay.
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
    /// Explanation for people: "99 of 100 pauses were shorter than 11m".
    pub why: String,
}

/// Who chose how long idle instances stay; the better informed one is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum KeepAliveSource {
    /// The operator's default: the function's pauses are not conclusive (yet).
    #[default]
    Default,
    /// Derived from the function's pauses.
    Adaptive,
    /// The function's `idleTimeout`.
    Set,
}

/// Whether a VM accepts calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Accepts calls.
    Ready,
    /// Finishes what runs, accepts nothing new.
    Draining,
    /// Its container engine does not answer; calls that need a new instance are refused.
    EngineDown,
}

/// What an instance does, as listings and metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Its container is made, or its code loads.
    Starting,
    /// Runs no call.
    Idle,
    /// Runs calls.
    Busy,
    /// Ends its calls and takes no new ones.
    Draining,
    /// Its container is being removed.
    Stopping,
    /// Of a newer agent; counts as none of the others.
    #[serde(other)]
    Unknown,
}

impl InstanceState {
    /// The word in listings and the metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Unknown => "unknown",
        }
    }
}

/// One instance in a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstanceStatus {
    /// The instance's id.
    pub id: InstanceId,
    /// The function it serves.
    pub function: FunctionName,
    /// The version it serves.
    pub version: VersionNumber,
    /// What it does now.
    pub state: InstanceState,
    /// Running calls.
    pub calls_active: u32,
    /// Calls that may run in it at once.
    #[serde(default)]
    pub concurrency: u32,
    /// When its start was requested.
    pub started_at: Timestamp,
}

/// Result of the removal of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageRemoval {
    /// Not on this VM any more, or not managed by it.
    Gone,
    /// Still in use on this VM; nothing was removed.
    InUse,
}

/// One machine with one agent and one engine.
///
/// All waits inside have limits of their own; no method waits for ever. Cancel-safe: dropping a
/// future gives back what was taken.
pub trait Vm: Send + Sync + fmt::Debug {
    /// Runs one call: leases a concurrency slot (or starts an instance, or waits within limits) and
    /// relays.
    ///
    /// # Errors
    /// [`VmError`]; its verdict says whether another VM may be tried.
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, VmError>>;

    /// Ensures that this VM can serve the version: image present, and healthy instances that loaded
    /// the code (at least one, at least `min_instances`). Idempotent.
    ///
    /// # Errors
    /// Why no instance started: `InitFailed` with the code's own error, or the platform's.
    fn ensure_ready(&self, version: Arc<Version>) -> BoxFuture<'_, Result<(), VmError>>;

    /// Pulls the version's image to this VM, so that a later start needs no pull. Starts nothing.
    /// Idempotent.
    ///
    /// # Errors
    /// Why it could not be pulled.
    fn fetch(&self, version: Arc<Version>) -> BoxFuture<'_, Result<(), VmError>>;

    /// Removes an image that no version needs any more from this VM, unless an instance uses it.
    /// Idempotent. A VM that stores no images does nothing.
    ///
    /// # Errors
    /// Why it is unknown whether the image is still here.
    fn remove_image(&self, _: ImageRef) -> BoxFuture<'_, Result<ImageRemoval, VmError>> {
        Box::pin(std::future::ready(Ok(ImageRemoval::Gone)))
    }

    /// Removes the stored log lines of a deleted function. Returns at once. Idempotent.
    fn forget(&self, function: &FunctionName);

    /// Sends no more calls to the version, lets running ones finish, removes its instances. Returns
    /// at once; the work continues in the background. Idempotent.
    fn retire(&self, version: &VersionId);

    /// The function's log: stored lines, oldest first, then new ones if requested.
    fn logs(&self, function: &FunctionName, query: LogQuery) -> BoxStream<'static, LogRecord>;

    /// The current state of the VM.
    fn status(&self) -> VmStatus;

    /// Starts or ends a drain; returns at once. Idempotent.
    fn drain(&self, draining: bool);
}
