//! A container engine in memory, for tests: an image is a [`Program`] of the test, a container is a
//! task that runs it, a kill drops the task. Passes the contract of the real one; its faults are
//! scripted.
//!
//! Compiled with the feature `fake` only.

use super::{
    Attachment, ContainerInfo, ContainerName, ContainerSpec, Disk, Engine, EngineError, Exit,
    Firewall, Freezer, LocalImage, Machine, NetworkSpec, Output,
};
use async_trait::async_trait;
use bytes::Bytes;
use epsilon_api::{
    function::ImageRef,
    ids::VmId,
    units::{Bytes as Size, MilliCores},
    vm::ImageRemoval,
};
use epsilon_registry::Host;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream, stream::BoxStream};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fmt, io,
    net::{IpAddr, Ipv4Addr},
    panic::{AssertUnwindSafe, resume_unwind},
    sync::Arc,
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{sleep, timeout},
};

/// The program of an image; its result is the exit status.
pub type Program = Arc<dyn Fn(Process) -> BoxFuture<'static, i64> + Send + Sync>;

/// Exit status of a killed process.
const KILLED: Exit = Exit { code: 137, out_of_memory: false };

/// A running container, as its program sees it.
#[derive(Clone, Debug)]
pub struct Process {
    /// The spec that the container was created from.
    pub spec: ContainerSpec,
    /// The container's own address.
    pub address: IpAddr,
    outputs: Arc<Mutex<Vec<mpsc::UnboundedSender<Output>>>>,
    /// Set once the program handles SIGTERM, which would end it otherwise.
    on_sigterm: Arc<Mutex<Option<watch::Sender<bool>>>>,
}

impl Process {
    /// Writes to standard output.
    pub fn print(&self, text: &str) {
        self.write(&Output::Stdout(Bytes::copy_from_slice(text.as_bytes())));
    }

    /// Writes to standard error.
    pub fn print_error(&self, text: &str) {
        self.write(&Output::Stderr(Bytes::copy_from_slice(text.as_bytes())));
    }

    /// Handles SIGTERM from now on: the value becomes true when it arrives.
    pub fn on_sigterm(&self) -> watch::Receiver<bool> {
        let mut handler = self.on_sigterm.lock();
        handler.get_or_insert_with(|| watch::Sender::new(false)).subscribe()
    }

    fn write(&self, piece: &Output) {
        self.outputs.lock().retain(|to| to.send(piece.clone()).is_ok());
    }
}

/// The verbs of [`Engine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Verb {
    Ping,
    EnsureImage,
    RemoveImage,
    Create,
    CodeOf,
    Attach,
    Start,
    Update,
    Address,
    Wait,
    Terminate,
    Freezer,
    Remove,
    List,
    EnsureNetwork,
    RemoveNetwork,
    EnsureFirewall,
    RemoveFirewall,
}

/// A fault of one use of a verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Delayed, then normal.
    Slow(Duration),
    /// No answer until the engine's timeout, as of a hung engine.
    Hang,
    /// Refused.
    Refuse,
    /// A bug: the caller's task panics.
    Panic,
}

/// The fake engine. Clones are the same engine.
#[derive(Clone, Default)]
pub struct FakeEngine(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    images: HashMap<String, Program>,
    /// Tars of images' code directories.
    code: HashMap<String, Bytes>,
    containers: BTreeMap<String, Container>,
    networks: HashSet<String>,
    closed_bridges: HashSet<String>,
    faults: HashMap<Verb, VecDeque<Fault>>,
    used: HashMap<Verb, usize>,
    is_down: bool,
    sees_mounts: bool,
    disk: Option<Disk>,
    most_running: usize,
    next_address: u16,
    /// Creations and starts in progress.
    at_work: usize,
    /// The runtime of containers; by default, that of their start.
    runtime: Option<Handle>,
}

struct Container {
    spec: ContainerSpec,
    process: Process,
    task: Option<AbortHandle>,
    exit: watch::Sender<Option<Exit>>,
    was_started: bool,
    is_frozen: bool,
}

impl Container {
    fn is_running(&self) -> bool {
        self.was_started && self.exit.borrow().is_none()
    }

    fn end(&mut self, exit: Exit) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.process.outputs.lock().clear();
        self.exit.send_if_modified(|now| now.is_none() && now.replace(exit).is_none());
    }
}

impl fmt::Debug for FakeEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeEngine")
    }
}

impl FakeEngine {
    /// The timeout of a hung engine.
    pub const TIMEOUT: Duration = Duration::from_millis(500);

    /// An engine without images.
    pub fn new() -> Self {
        Self::default()
    }

    /// An engine whose containers run on this runtime, and so outlive the runtime of a killed
    /// agent.
    pub fn on_this_runtime() -> Self {
        let engine = Self::default();
        engine.0.lock().runtime = Some(Handle::current());
        engine
    }

    /// Adds an image under this reference.
    pub fn add_image(&self, reference: &str, program: Program) {
        self.0.lock().images.insert(reference.to_owned(), program);
    }

    /// Gives an image a code directory, as a tar of `app/…`.
    pub fn add_code(&self, reference: &str, tar: impl Into<Bytes>) {
        self.0.lock().code.insert(reference.to_owned(), tar.into());
    }

    /// Removes an image, as an operator would.
    pub fn remove_image(&self, reference: &str) {
        self.0.lock().images.remove(reference);
    }

    /// References of all images.
    pub fn images(&self) -> Vec<String> {
        self.0.lock().images.keys().cloned().collect()
    }

    /// Sets how full the disk is.
    pub fn set_disk(&self, disk: Disk) {
        self.0.lock().disk = Some(disk);
    }

    /// Adds a fault to the next use of the verb; several calls queue up.
    pub fn script(&self, verb: Verb, fault: Fault) {
        self.0.lock().faults.entry(verb).or_default().push_back(fault);
    }

    /// Drops scripted faults that did not happen.
    pub fn forget_script(&self) {
        self.0.lock().faults.clear();
    }

    /// Stops or starts the engine itself. Its containers go on.
    pub fn set_down(&self, is_down: bool) {
        self.0.lock().is_down = is_down;
    }

    /// From now on, containers see what is mounted on their directories later.
    pub fn see_mounts(&self) {
        self.0.lock().sees_mounts = true;
    }

    /// How often a verb was used.
    pub fn used(&self, verb: Verb) -> usize {
        self.0.lock().used.get(&verb).copied().unwrap_or(0)
    }

    /// Names of all containers.
    pub fn containers(&self) -> Vec<String> {
        self.0.lock().containers.keys().cloned().collect()
    }

    /// Most containers that ran at the same time.
    pub fn most_running(&self) -> usize {
        self.0.lock().most_running
    }

    /// The spec that a container was created from, with its current limits.
    pub fn spec(&self, name: &str) -> Option<ContainerSpec> {
        self.0.lock().containers.get(name).map(|container| container.spec.clone())
    }

    /// Names of frozen containers.
    pub fn frozen(&self) -> Vec<String> {
        let state = self.0.lock();
        let frozen = state.containers.iter().filter(|(_, container)| container.is_frozen);
        frozen.map(|(name, _)| name.clone()).collect()
    }

    /// Names of all networks.
    pub fn networks(&self) -> Vec<String> {
        self.0.lock().networks.iter().cloned().collect()
    }

    /// Whether a creation or start is in progress, also if its caller is gone.
    pub fn is_busy(&self) -> bool {
        self.0.lock().at_work > 0
    }

    /// Ends one process, as a signal would.
    pub fn crash(&self, name: &str) {
        if let Some(container) = self.0.lock().containers.get_mut(name) {
            container.end(KILLED);
        }
    }

    /// Ends all processes, as a restart of the engine does.
    pub fn crash_all(&self, exit: Exit) {
        self.0.lock().containers.values_mut().for_each(|container| container.end(exit));
    }

    /// Common entry of every verb: counts its use and applies scripted faults.
    async fn enter(&self, verb: Verb) -> Result<(), EngineError> {
        let (fault, is_down) = {
            let mut state = self.0.lock();
            *state.used.entry(verb).or_default() += 1;
            (state.faults.get_mut(&verb).and_then(VecDeque::pop_front), state.is_down)
        };
        if is_down {
            return Err(EngineError::Down("scripted to be down".into()));
        }
        match fault {
            None => Ok(()),
            Some(Fault::Slow(time)) => {
                sleep(time).await;
                Ok(())
            }
            Some(Fault::Hang) => {
                sleep(Self::TIMEOUT).await;
                Err(EngineError::Down("scripted to hang".into()))
            }
            Some(Fault::Panic) => panic!("scripted to panic"),
            Some(Fault::Refuse) => Err(EngineError::Refused("scripted to refuse".into())),
        }
    }

    /// As with the real one: the work is completed, also when the caller is gone.
    async fn complete<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
    ) -> Result<T, EngineError> {
        let runtime = self.0.lock().runtime.clone().unwrap_or_else(Handle::current);
        let at_work = BusyGuard::begin(self);
        let work = async move {
            let _at_work = at_work;
            work.await
        };
        runtime.spawn(work).await.unwrap_or_else(|err| match err.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(err) => Err(EngineError::Down(err.into())),
        })
    }

    fn add_container(&self, spec: ContainerSpec) -> Result<(), EngineError> {
        let mut state = self.0.lock();
        if !state.images.contains_key(&spec.image.name) {
            return Err(EngineError::NotFound(spec.image.name));
        }
        if state.containers.contains_key(spec.name.as_str()) {
            return Err(EngineError::Refused(format!("`{}` is in use", spec.name)));
        }
        state.next_address += 1;
        let [high, low] = state.next_address.to_be_bytes();
        let process = Process {
            spec: spec.clone(),
            address: Ipv4Addr::new(127, 77, high, low).into(),
            outputs: Arc::default(),
            on_sigterm: Arc::default(),
        };
        let exit = watch::Sender::new(None);
        let name = spec.name.to_string();
        let container =
            Container { spec, process, task: None, exit, was_started: false, is_frozen: false };
        state.containers.insert(name, container);
        Ok(())
    }

    fn with<T>(
        &self,
        name: &ContainerName,
        act: impl FnOnce(&mut Container) -> T,
    ) -> Result<T, EngineError> {
        let mut state = self.0.lock();
        let container = state.containers.get_mut(name.as_str());
        container.map(act).ok_or_else(|| EngineError::NotFound(name.to_string()))
    }
}

/// Only records whether the container is frozen.
#[derive(Debug)]
struct FakeFreezer {
    engine: FakeEngine,
    container: ContainerName,
}

impl FakeFreezer {
    fn set(&self, is_frozen: bool) -> io::Result<()> {
        let set = self.engine.with(&self.container, |container| container.is_frozen = is_frozen);
        set.map_err(io::Error::other)
    }
}

impl Freezer for FakeFreezer {
    fn freeze(&self) -> io::Result<()> {
        self.set(true)
    }

    fn thaw(&self) -> io::Result<()> {
        self.set(false)
    }
}

struct BusyGuard(FakeEngine);

impl BusyGuard {
    fn begin(engine: &FakeEngine) -> Self {
        engine.0.lock().at_work += 1;
        Self(engine.clone())
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.0.0.lock().at_work -= 1;
    }
}

#[async_trait]
impl Engine for FakeEngine {
    async fn ping(&self) -> Result<Machine, EngineError> {
        self.enter(Verb::Ping).await?;
        Ok(Machine { memory: Size::mib(8192), cores: 2 })
    }

    fn sees_mounts(&self) -> bool {
        self.0.lock().sees_mounts
    }

    async fn ensure_image(&self, image: &ImageRef) -> Result<LocalImage, EngineError> {
        self.enter(Verb::EnsureImage).await?;
        if self.0.lock().images.contains_key(&image.reference) {
            return Ok(LocalImage::new(&image.reference));
        }
        // The fake has no registry, but distinguishes names that name one.
        Err(match Host::named_in(&image.reference) {
            Some(_) => EngineError::NotFound(image.reference.clone()),
            None => EngineError::NotHere(image.reference.clone()),
        })
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<ImageRemoval, EngineError> {
        self.enter(Verb::RemoveImage).await?;
        let mut state = self.0.lock();
        let mut specs = state.containers.values().map(|container| &container.spec);
        if specs.any(|spec| spec.image.name == image.reference) {
            return Ok(ImageRemoval::InUse);
        }
        state.images.remove(&image.reference);
        Ok(ImageRemoval::Gone)
    }

    /// Those with a digest in their name.
    async fn pulled_images(&self) -> Result<Vec<ImageRef>, EngineError> {
        self.enter(Verb::RemoveImage).await?;
        let state = self.0.lock();
        let pulled = state.images.keys().filter(|name| name.contains('@'));
        let image = |name: &String| ImageRef { reference: name.clone(), digest: name.clone() };
        Ok(pulled.map(image).collect())
    }

    async fn disk(&self) -> Result<Option<Disk>, EngineError> {
        self.enter(Verb::Ping).await?;
        Ok(self.0.lock().disk)
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), EngineError> {
        let engine = self.clone();
        let spec = spec.clone();
        self.complete(async move {
            engine.enter(Verb::Create).await?;
            engine.add_container(spec)
        })
        .await
    }

    async fn attach(
        &self,
        name: &ContainerName,
    ) -> Result<BoxStream<'static, Output>, EngineError> {
        self.enter(Verb::Attach).await?;
        self.with(name, |container| {
            if container.exit.borrow().is_some() {
                return Err(EngineError::Refused("it has ended".into()));
            }
            let (to, pieces) = mpsc::unbounded_channel();
            container.process.outputs.lock().push(to);
            let next = |mut pieces: mpsc::UnboundedReceiver<Output>| async move {
                pieces.recv().await.map(|piece| (piece, pieces))
            };
            Ok(stream::unfold(pieces, next).boxed())
        })?
    }

    async fn code_of(
        &self,
        name: &ContainerName,
    ) -> Result<BoxStream<'static, Result<Bytes, EngineError>>, EngineError> {
        self.enter(Verb::CodeOf).await?;
        let state = self.0.lock();
        let container = state.containers.get(name.as_str());
        let image = container.map(|container| &container.spec.image.name);
        let code = image.and_then(|image| state.code.get(image));
        let code = code.cloned().ok_or_else(|| EngineError::NotFound(name.to_string()))?;
        Ok(stream::iter([Ok(code)]).boxed())
    }

    async fn start(&self, name: &ContainerName) -> Result<(), EngineError> {
        self.enter(Verb::Start).await?;
        let engine = self.clone();
        let mut state = self.0.lock();
        let runtime = state.runtime.clone().unwrap_or_else(Handle::current);
        let State { images, containers, networks, .. } = &mut *state;
        let Some(container) = containers.get_mut(name.as_str()) else {
            return Err(EngineError::NotFound(name.to_string()));
        };
        let Some(program) = images.get(&container.spec.image.name) else {
            return Err(EngineError::NotFound(container.spec.image.name.clone()));
        };
        if container.was_started {
            return Ok(());
        }
        if let Attachment::Bridge(network) = &container.spec.network
            && !networks.contains(network)
        {
            return Err(EngineError::NotFound(format!("network {network}")));
        }
        let running = program(container.process.clone());
        let owned = name.clone();
        container.was_started = true;
        container.task = Some(
            runtime
                .spawn(async move {
                    let code = AssertUnwindSafe(running).catch_unwind().await.unwrap_or(134);
                    let exit = Exit { code, out_of_memory: false };
                    // Ended by itself; if it is being removed, that has set the exit already.
                    drop(engine.with(&owned, |container| {
                        container.task = None;
                        container.end(exit);
                    }));
                })
                .abort_handle(),
        );
        let running = state.containers.values().filter(|container| container.is_running()).count();
        state.most_running = state.most_running.max(running);
        Ok(())
    }

    async fn update(
        &self,
        name: &ContainerName,
        memory: Size,
        cpu: MilliCores,
    ) -> Result<(), EngineError> {
        self.enter(Verb::Update).await?;
        self.with(name, |container| (container.spec.memory, container.spec.cpu) = (memory, cpu))
    }

    async fn freezer(&self, name: &ContainerName) -> Result<Option<Box<dyn Freezer>>, EngineError> {
        self.enter(Verb::Freezer).await?;
        self.with(name, |_| ())?;
        Ok(Some(Box::new(FakeFreezer { engine: self.clone(), container: name.clone() })))
    }

    async fn address(&self, name: &ContainerName) -> Result<IpAddr, EngineError> {
        self.enter(Verb::Address).await?;
        self.with(name, |container| container.process.address)
    }

    async fn wait(&self, name: &ContainerName) -> Result<Exit, EngineError> {
        self.enter(Verb::Wait).await?;
        let mut exit = self.with(name, |container| container.exit.subscribe())?;
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => Ok(exit.unwrap_or(KILLED)),
            Err(_) => Ok(KILLED),
        }
    }

    async fn terminate(&self, name: &ContainerName) -> Result<(), EngineError> {
        self.enter(Verb::Terminate).await?;
        self.with(name, |container| {
            let handler = container.process.on_sigterm.lock().clone();
            match handler {
                Some(handler) => drop(handler.send_replace(true)),
                None => container.end(Exit { code: Exit::SIGTERM, out_of_memory: false }),
            }
        })
    }

    async fn remove(&self, name: &ContainerName) -> Result<(), EngineError> {
        self.enter(Verb::Remove).await?;
        let removed = self.0.lock().containers.remove(name.as_str());
        if let Some(mut container) = removed {
            container.end(KILLED);
        }
        Ok(())
    }

    async fn list(&self, vm: &VmId) -> Result<Vec<ContainerInfo>, EngineError> {
        // A late list is as good as none: as with the real one, within the engine's timeout.
        timeout(Self::TIMEOUT * 2, self.enter(Verb::List))
            .await
            .map_err(|late| EngineError::Down(late.into()))??;
        let state = self.0.lock();
        let ours = state.containers.values().filter(|container| container.spec.labels.vm == *vm);
        Ok(ours
            .map(|container| ContainerInfo {
                name: container.spec.name.clone(),
                labels: container.spec.labels.to_map(),
                is_running: container.is_running(),
            })
            .collect())
    }

    async fn ensure_network(&self, network: &NetworkSpec) -> Result<(), EngineError> {
        let engine = self.clone();
        let name = network.name.clone();
        self.complete(async move {
            engine.enter(Verb::EnsureNetwork).await?;
            engine.0.lock().networks.insert(name);
            Ok(())
        })
        .await
    }

    async fn remove_network(&self, name: &str) -> Result<(), EngineError> {
        self.enter(Verb::RemoveNetwork).await?;
        self.0.lock().networks.remove(name);
        Ok(())
    }

    async fn ensure_firewall(&self, firewall: &Firewall) -> Result<(), EngineError> {
        self.enter(Verb::EnsureFirewall).await?;
        self.0.lock().closed_bridges.insert(firewall.bridge.clone());
        Ok(())
    }

    async fn remove_firewall(&self, bridge: &str) -> Result<(), EngineError> {
        self.enter(Verb::RemoveFirewall).await?;
        self.0.lock().closed_bridges.remove(bridge);
        Ok(())
    }
}
