//! A scripted VM. It refuses calls without a script. Shared by the unit tests of the crate and the
//! program tests in `tests/`.

#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part; a fake may panic")]

use epsilon_api::{
    body::{self, CallBody},
    error::VmError,
    function::{FunctionSpec, ImageRef, Runtime, Version},
    ids::{
        DeploymentId, FunctionName, InstanceId, ProjectName, RequestId, VersionId, VersionNumber,
        VmId,
    },
    log::{Level, LogQuery, LogRecord},
    units::{Bytes, MilliCores},
    vm::{Answer, Call, ImageRemoval, InstanceState, InstanceStatus, Spent, Vm, VmState, VmStatus},
};
use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use http::Response;
use jiff::Timestamp;
use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::sync::Semaphore;

/// Answers calls of a function in a test.
pub(crate) type Script =
    Arc<dyn Fn(Call) -> BoxFuture<'static, Result<Answer, VmError>> + Send + Sync>;

/// A fault of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartFault {
    /// It cannot pull images.
    NoImage,
    /// Its operations never end.
    Hangs,
    /// It has images, but no instance starts.
    NoStart,
}

/// A callback that runs once.
pub(crate) type Hook = Box<dyn FnOnce() + Send>;

/// The scripted VM.
pub(crate) struct FakeVm {
    id: VmId,
    scripts: Mutex<HashMap<String, Script>>,
    /// Versions passed to `ensure_ready`.
    pub(crate) ready: Mutex<Vec<VersionId>>,
    /// Functions whose code fails to load, and its output.
    pub(crate) broken: Mutex<HashMap<String, String>>,
    /// Versions passed to `fetch`.
    pub(crate) fetched: Mutex<Vec<VersionId>>,
    /// The fault that `fetch` and `ensure_ready` simulate.
    pub(crate) start_fault: Mutex<Option<StartFault>>,
    pub(crate) retired: Mutex<Vec<VersionId>>,
    pub(crate) forgotten: Mutex<Vec<FunctionName>>,
    /// Images passed to `remove_image`, and whether images are in use.
    pub(crate) removed: Mutex<Vec<ImageRef>>,
    pub(crate) uses_images: AtomicBool,
    /// Runs inside of `retire`, before the version is recorded.
    pub(crate) on_retire: Mutex<Option<Hook>>,
    /// One permit lets one `ensure_ready` finish.
    pub(crate) gate: Semaphore,
    /// Number of calls whose future or body has not ended.
    pub(crate) active: Arc<AtomicUsize>,
    pub(crate) draining: AtomicBool,
    /// Memory for instances, and CPUs.
    pub(crate) size: Mutex<(Bytes, MilliCores)>,
    pub(crate) log: Mutex<Vec<LogRecord>>,
}

impl fmt::Debug for FakeVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FakeVm").field(&self.id).finish()
    }
}

/// Counts a call while it exists.
pub(crate) struct Active(Arc<AtomicUsize>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl FakeVm {
    pub(crate) fn new(id: &str) -> Arc<Self> {
        Arc::new(Self {
            id: VmId::parse(id).unwrap(),
            scripts: Mutex::default(),
            ready: Mutex::default(),
            broken: Mutex::default(),
            fetched: Mutex::default(),
            start_fault: Mutex::default(),
            retired: Mutex::default(),
            forgotten: Mutex::default(),
            removed: Mutex::default(),
            uses_images: AtomicBool::new(false),
            on_retire: Mutex::default(),
            gate: Semaphore::new(1000),
            active: Arc::default(),
            draining: AtomicBool::new(false),
            size: Mutex::new((Bytes::mib(4096), MilliCores::ONE)),
            log: Mutex::default(),
        })
    }

    pub(crate) fn arc(id: &str) -> Arc<dyn Vm> {
        Self::new(id)
    }

    /// Sets the script of a function.
    pub(crate) fn script<F, R>(&self, function: &str, script: F)
    where
        F: Fn(Call) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Answer, VmError>> + Send + 'static,
    {
        let script: Script = Arc::new(move |call| Box::pin(script(call)));
        self.scripts.lock().unwrap().insert(function.to_owned(), script);
    }

    pub(crate) fn retired(&self) -> Vec<String> {
        self.retired.lock().unwrap().iter().map(ToString::to_string).collect()
    }

    pub(crate) fn ready(&self) -> Vec<String> {
        self.ready.lock().unwrap().iter().map(ToString::to_string).collect()
    }

    pub(crate) fn fetched(&self) -> usize {
        self.fetched.lock().unwrap().len()
    }

    pub(crate) fn active(&self) -> usize {
        self.active.load(SeqCst)
    }
}

impl Vm for FakeVm {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, VmError>> {
        let script = self.scripts.lock().unwrap().get(call.version.function.as_str()).cloned();
        self.active.fetch_add(1, SeqCst);
        let active = Active(Arc::clone(&self.active));
        Box::pin(async move {
            let Some(script) = script else {
                return Err(VmError::Internal(format!("unexpected {call:?}").into()));
            };
            let mut answer = script(call).await?;
            answer.response = answer.response.map(|inner| {
                let mut active = Some(active);
                let mut inner = Some(inner);
                // Counts the call until the body ends, like an agent's lease.
                let held = Held { inner: inner.take().unwrap(), _active: active.take().unwrap() };
                body::boxed(held)
            });
            Ok(answer)
        })
    }

    fn ensure_ready(&self, version: Arc<Version>) -> BoxFuture<'_, Result<(), VmError>> {
        Box::pin(async move {
            self.ready.lock().unwrap().push(version.id());
            self.gate.acquire().await.unwrap().forget();
            if self.start_fault.lock().unwrap().is_some() {
                let cause = "the engine is down".into();
                return Err(VmError::NoCapacity { function: version.function.clone(), cause });
            }
            match self.broken.lock().unwrap().get(version.function.as_str()) {
                Some(detail) => Err(VmError::InitFailed {
                    function: version.function.clone(),
                    detail: detail.clone(),
                }),
                None => Ok(()),
            }
        })
    }

    fn fetch(&self, version: Arc<Version>) -> BoxFuture<'_, Result<(), VmError>> {
        Box::pin(async move {
            self.fetched.lock().unwrap().push(version.id());
            let start_fault = *self.start_fault.lock().unwrap();
            match start_fault {
                Some(StartFault::NoImage) => Err(VmError::NoCapacity {
                    function: version.function.clone(),
                    cause: "no such image".into(),
                }),
                Some(StartFault::Hangs) => std::future::pending().await,
                Some(StartFault::NoStart) | None => Ok(()),
            }
        })
    }

    fn remove_image(&self, image: ImageRef) -> BoxFuture<'_, Result<ImageRemoval, VmError>> {
        self.removed.lock().unwrap().push(image);
        let is_used = self.uses_images.load(SeqCst);
        let removal = if is_used { ImageRemoval::InUse } else { ImageRemoval::Gone };
        Box::pin(std::future::ready(Ok(removal)))
    }

    fn forget(&self, function: &FunctionName) {
        self.forgotten.lock().unwrap().push(function.clone());
    }

    fn retire(&self, version: &VersionId) {
        let hook = self.on_retire.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
        self.retired.lock().unwrap().push(version.clone());
    }

    fn logs(&self, function: &FunctionName, query: LogQuery) -> BoxStream<'static, LogRecord> {
        let mut lines: Vec<LogRecord> = self.log.lock().unwrap().clone();
        lines.retain(|record| {
            record.function == *function
                && (query.request_id.is_none() || record.request_id == query.request_id)
        });
        let skip = query.tail.map_or(0, |tail| lines.len().saturating_sub(tail));
        let lines = stream::iter(lines.into_iter().skip(skip));
        if query.follow { lines.chain(stream::pending()).boxed() } else { lines.boxed() }
    }

    fn status(&self) -> VmStatus {
        let retired: HashSet<VersionId> = self.retired.lock().unwrap().iter().cloned().collect();
        let ready = self.ready.lock().unwrap();
        let instances = ready.iter().filter(|id| !retired.contains(id)).map(|id| InstanceStatus {
            id: InstanceId::parse("0123456789ab").unwrap(),
            function: id.function.clone(),
            version: id.number,
            state: InstanceState::Idle,
            calls_active: 0,
            concurrency: 1,
            started_at: Timestamp::UNIX_EPOCH,
        });
        let (memory_bytes, cpu_millicores) = *self.size.lock().unwrap();
        VmStatus {
            cells: Default::default(),
            keeps: Vec::new(),
            id: self.id.clone(),
            state: if self.draining.load(SeqCst) { VmState::Draining } else { VmState::Ready },
            boot: 0,
            version: None,
            certificate_ends_at: None,
            cpu_millicores,
            memory_bytes,
            memory_used_bytes: Bytes(0),
            calls_active: u32::try_from(self.active()).unwrap(),
            calls_waiting: 0,
            instances: instances.collect(),
            images: Vec::new(),
        }
    }

    fn drain(&self, draining: bool) {
        self.draining.store(draining, SeqCst);
    }
}

struct Held {
    inner: CallBody,
    _active: Active,
}

impl http_body::Body for Held {
    type Data = bytes::Bytes;
    type Error = body::BodyError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, body::BodyError>>> {
        std::pin::Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

/// An answer of a function that took 1 ms.
pub(crate) fn answer(response: Response<CallBody>) -> Answer {
    let spent = Spent { exec: Duration::from_millis(1), ..Spent::default() };
    Answer { response, spent }
}

/// `200` with this text.
pub(crate) fn ok(text: impl Into<bytes::Bytes>) -> Result<Answer, VmError> {
    Ok(answer(Response::new(body::full(text))))
}

/// The settings of a function with defaults only.
pub(crate) fn spec(function: &str) -> FunctionSpec {
    FunctionSpec::new(Runtime::Node, "index.js", function)
}

/// A version of the project `shop` with this number and the settings of [`spec`].
pub(crate) fn version(function: &str, number: u32) -> Version {
    Version {
        parts: None,
        function: FunctionName::parse(function).unwrap(),
        number: VersionNumber::new(number).unwrap(),
        project: ProjectName::parse("shop").unwrap(),
        deployment: DeploymentId::parse("d-0000000000000001").unwrap(),
        image: ImageRef {
            reference: format!("epsilon/{function}:{number}"),
            digest: format!("sha256:{number}"),
        },
        spec: spec(function),
        created_at: Timestamp::UNIX_EPOCH,
    }
}

/// A line of a function's log.
pub(crate) fn line(function: &str, request_id: Option<&str>, message: &str) -> LogRecord {
    LogRecord {
        time: Timestamp::UNIX_EPOCH,
        level: Level::Info,
        function: FunctionName::parse(function).unwrap(),
        version: VersionNumber::FIRST,
        instance: InstanceId::parse("0123456789ab").unwrap(),
        request_id: request_id.map(|id| RequestId::parse(id).unwrap()),
        message: message.to_owned(),
        vm: None,
        position: None,
    }
}
