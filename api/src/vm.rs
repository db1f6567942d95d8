//! One VM as the gateway sees it. In `epsilon up` the agent itself stands behind this trait; in a
//! fleet, a client of the agent's listener does. The gateway cannot tell which.

use crate::{
    body::{BodyProgress, CallBody},
    error::CallError,
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

/// A call on its way to a VM.
///
/// The request's URI is what the function sees: path after its name, and query. Hop-by-hop headers and
/// headers of the platform are gone already. An upgrade keeps its `Connection`/`Upgrade` headers.
pub struct Call {
    /// What to run.
    pub version: Arc<Version>,
    /// The call's id.
    pub request_id: RequestId,
    /// Whether the call may wait in this VM for a place or for memory. `false` when there is another VM to
    /// try: then what cannot begin at once (or by a start that has room) is refused, with nothing executed.
    pub may_wait: bool,
    /// Method, path, headers and body as the function is to see them.
    pub request: Request<CallBody>,
    /// How far the request's body has come. `None`: all of it is there, or there is none.
    pub upload: Option<BodyProgress>,
    /// Where interim answers (1xx) go that the function gives before its answer. `None`: nowhere.
    pub interim: Option<Arc<dyn InterimSink>>,
}

/// Takes interim answers of a call; see [`Call::interim`]. Bounded by itself: a function may send any number.
pub trait InterimSink: Send + Sync {
    /// One came.
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
/// Dropping the response's body before its end means that the caller is gone; the VM then settles the
/// call on its own. For an upgrade (101) the response carries hyper's `OnUpgrade` and a [`Held`] in its
/// extensions; the one who copies the bytes keeps the [`Held`] until the copy is over.
pub struct Answer {
    /// Status, headers and body from the function.
    pub response: Response<CallBody>,
    /// What the VM spent before the function ran.
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

/// Keeps an instance leased for as long as it lives. Lives in a response's extensions.
#[derive(Clone)]
pub struct Held(pub Arc<dyn Any + Send + Sync>);

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held")
    }
}

/// Where the time of a call went inside the VM; the source of `server-timing`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Waiting for a place in an instance that was already there or about to be.
    pub queue: Duration,
    /// Starting the instance that this call waited for, when it did.
    pub start: Option<StartPhases>,
    /// From the hand-over to the instance until the head of its answer.
    pub exec: Duration,
}

/// The phases of one start of an instance. Those that were not part of it are zero: a start in a cell has `layers`, `cell` and
/// `init`; one from an image `pull`, `create`, `start` and `init`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartPhases {
    /// Getting the image to this VM.
    pub pull: Duration,
    /// Getting the layers of the code to this VM.
    pub layers: Duration,
    /// Taking a cell and mounting the layers into it.
    pub cell: Duration,
    /// The engine made the container.
    pub create: Duration,
    /// The engine started it and its runtime listened.
    pub start: Duration,
    /// The user's code loaded.
    pub init: Duration,
}

impl StartPhases {
    /// All phases together.
    pub fn total(&self) -> Duration {
        self.pull + self.layers + self.cell + self.create + self.start + self.init
    }
}

/// What a VM says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its id.
    pub id: VmId,
    /// Takes calls, or is being emptied.
    pub state: VmState,
    /// A number that changes with each start of its agent: what the agent was told before is forgotten.
    #[serde(default)]
    pub boot: u64,
    /// The version of its program; absent of those that do not say it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// When the first of the certificates ends that its agent loaded at its start; none where the fleet has no TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_ends_at: Option<Timestamp>,
    /// Processors of the machine.
    #[serde(default)]
    pub cpu_millicores: MilliCores,
    /// Memory that instances may have in all.
    pub memory_bytes: Bytes,
    /// Memory given out.
    pub memory_used_bytes: Bytes,
    /// Calls that run now.
    pub calls_active: u32,
    /// Calls that wait for a place now.
    pub calls_waiting: u32,
    /// The instances, oldest first.
    pub instances: Vec<InstanceStatus>,
    /// Booted containers that wait for a function.
    #[serde(default)]
    pub cells: CellCount,
    /// How long idle instances stay here, for versions whose pauses were measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keeps: Vec<Keep>,
    /// Versions whose image lies on this VM, as far as the agent has looked; the one used last comes first.
    #[serde(default)]
    pub images: Vec<VersionId>,
}

/// The cells of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellCount {
    /// Can be given to a function at once.
    pub ready: u32,
    /// Boot.
    pub booting: u32,
}

/// How long a VM keeps idle instances of a version, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// The function.
    pub function: FunctionName,
    /// Its version.
    pub version: VersionNumber,
    /// How long an instance stays after its last call.
    #[serde(with = "crate::function::millis", rename = "idle_ms")]
    pub idle: Duration,
    /// How long after the last call one is made ready for the next; `None` where that would not pay.
    #[serde(
        default,
        with = "crate::function::optional_millis",
        rename = "ready_after_ms",
        skip_serializing_if = "Option::is_none"
    )]
    pub ready_after: Option<Duration>,
    /// Who chose these times.
    #[serde(default)]
    pub by: KeepBy,
    /// Why, for people: "99 of 100 pauses were shorter than 11m".
    pub why: String,
}

/// Who chose how long idle instances stay; the one who knows more is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepBy {
    /// The operator: the function's pauses say nothing (yet).
    #[default]
    Default,
    /// The function's pauses.
    Adaptive,
    /// The function's `idleTimeout`.
    Set,
}

/// Whether a VM takes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Takes calls.
    Ready,
    /// Ends what runs, takes nothing new.
    Draining,
    /// Its container engine does not answer; calls that need a new instance are refused.
    EngineDown,
}

/// One instance in a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Its id.
    pub id: InstanceId,
    /// The function it serves.
    pub function: FunctionName,
    /// The version it serves.
    pub version: VersionNumber,
    /// `starting`, `idle`, `busy`, `draining` or `stopping`.
    pub state: String,
    /// Calls that run in it.
    pub calls_active: u32,
    /// Calls that may run in it at once.
    #[serde(default)]
    pub concurrency: u32,
    /// When it was asked for.
    pub started_at: Timestamp,
}

/// What came of the removal of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageRemoval {
    /// It is not here any more, or is not ours to remove.
    Gone,
    /// Something here still uses it; nothing was touched.
    InUse,
}

/// One machine with one agent and one engine.
///
/// All waits inside have limits of their own; no method waits for ever. Cancelling a future (dropping it)
/// is safe at any point and gives back what was taken.
pub trait Vm: Send + Sync + fmt::Debug {
    /// Runs one call: leases a place (or starts an instance, or waits within limits) and relays.
    ///
    /// # Errors
    /// [`CallError`]; its verdict says whether another VM may be tried.
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, CallError>>;

    /// Makes sure that this VM can serve the version: image present, and an instance that loaded the code
    /// and is healthy (at least one, at least `min_instances`). Idempotent.
    ///
    /// # Errors
    /// The reason why no instance came up: `InitFailed` with the code's own error, or the platform's.
    fn ensure_ready(&self, version: Arc<Version>) -> BoxFuture<'_, Result<(), CallError>>;

    /// Brings the version's image to this VM, so that a later start needs no pull. Starts nothing. Idempotent.
    ///
    /// # Errors
    /// Why it could not be had.
    fn fetch(&self, version: Arc<Version>) -> BoxFuture<'_, Result<(), CallError>>;

    /// No version needs this image any more: takes it off this VM, unless an instance uses it. Idempotent. A VM that keeps
    /// no images has nothing to do.
    ///
    /// # Errors
    /// Why it is not known whether it is still here.
    fn remove_image(&self, _: ImageRef) -> BoxFuture<'_, Result<ImageRemoval, CallError>> {
        Box::pin(std::future::ready(Ok(ImageRemoval::Gone)))
    }

    /// The function was deleted: its kept log lines go. Returns at once. Idempotent.
    fn forget(&self, function: &FunctionName);

    /// Takes no more calls for the version, lets running ones end, removes its instances. Returns at once;
    /// the work goes on behind. Idempotent.
    fn retire(&self, version: &VersionId);

    /// The function's log: kept lines, oldest first, then new ones if asked for.
    fn logs(&self, function: &FunctionName, query: LogQuery) -> BoxStream<'static, LogRecord>;

    /// What the VM holds now.
    fn status(&self) -> VmStatus;

    /// Starts or ends a drain; says at once whether the VM now drains. Idempotent.
    fn drain(&self, draining: bool);
}
