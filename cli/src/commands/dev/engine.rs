//! An engine without containers: the agent's instances are plain Node processes in the project's
//! own folder. So the path of a call and the lifecycle of an instance are the platform's own; only
//! the containment is missing: memory and CPU limits, the read-only root, network rules.
//!
//! ```text
//! create: take a spare process ─▶ attach: its output ─▶ start: order it to be the wrapper
//! ─▶ wait, remove
//! ```

use super::processes::{Order, Process, Processes};
use async_trait::async_trait;
use epsilon_api::{
    function::ImageRef,
    ids::{FunctionName, VmId},
    units::Bytes,
    vm::ImageRemoval,
};
use epsilon_vm_agent::engine::{
    ContainerInfo, ContainerName, ContainerSpec, Disk, Engine, EngineError, Exit, Firewall,
    LocalImage, Machine, NetworkSpec, Output,
};
use futures_util::{StreamExt as _, stream, stream::BoxStream};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv4Addr},
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{
    process::{ChildStderr, ChildStdout},
    sync::{oneshot, watch},
    time::timeout,
};
use tokio_util::io::ReaderStream;

/// More than all functions can request: only the machine's own limits apply.
pub(super) const MEMORY: Bytes = Bytes(1 << 50);
/// How long a killed process may take to be gone. SIGKILL takes effect at once, unless a disk
/// hangs.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// The engine of `epsilon dev`.
#[derive(Debug)]
pub(super) struct ProcessEngine {
    /// The project's folder.
    code: String,
    processes: Arc<Processes>,
    instances: Mutex<HashMap<ContainerName, Instance>>,
    /// The first port for debuggers, and the functions that have one, in order of assignment.
    inspect: Option<u16>,
    ports: Mutex<Vec<FunctionName>>,
}

#[derive(Debug)]
struct Instance {
    labels: HashMap<String, String>,
    function: FunctionName,
    sockets: Option<PathBuf>,
    /// Set until it is started.
    waiting: Option<Process>,
    output: Option<(ChildStdout, ChildStderr)>,
    exit: watch::Receiver<Option<Exit>>,
    /// Requests SIGTERM from the task that waits for the process.
    terminate: Option<oneshot::Sender<()>>,
    /// Requests SIGKILL from the same task.
    kill: Option<oneshot::Sender<()>>,
}

impl ProcessEngine {
    /// `inspect` is the first port for debuggers.
    pub(super) fn new(processes: Arc<Processes>, inspect: Option<u16>) -> Self {
        let code = processes.project.display().to_string();
        Self { code, processes, instances: Mutex::default(), inspect, ports: Mutex::default() }
    }

    /// Each function has a port of its own, the same one across reloads.
    fn port(&self, function: &FunctionName) -> Option<u16> {
        let first = self.inspect?;
        let mut ports = self.ports.lock();
        let nth = ports.iter().position(|one| one == function).unwrap_or_else(|| {
            ports.push(function.clone());
            ports.len() - 1
        });
        first.checked_add(u16::try_from(nth).ok()?)
    }

    fn with<T>(
        &self,
        name: &ContainerName,
        look: impl FnOnce(&mut Instance) -> Option<T>,
    ) -> Result<T, EngineError> {
        let mut instances = self.instances.lock();
        let found = instances.get_mut(name).and_then(look);
        found.ok_or_else(|| EngineError::NotFound(name.to_string()))
    }
}

#[async_trait]
impl Engine for ProcessEngine {
    fn code(&self) -> &str {
        &self.code
    }

    async fn ping(&self) -> Result<Machine, EngineError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Machine { memory: MEMORY, cores: u32::try_from(cores).unwrap_or(u32::MAX) })
    }

    async fn ensure_image(&self, image: &ImageRef) -> Result<LocalImage, EngineError> {
        Ok(LocalImage::new(image.reference.clone())) // the image is the project's folder
    }

    async fn remove_image(&self, _: &ImageRef) -> Result<ImageRemoval, EngineError> {
        Ok(ImageRemoval::Gone) // the developer's own files are never removed
    }

    async fn pulled_images(&self) -> Result<Vec<ImageRef>, EngineError> {
        Ok(Vec::new())
    }

    async fn disk(&self) -> Result<Option<Disk>, EngineError> {
        Ok(None)
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), EngineError> {
        let version = spec.labels.version.as_ref();
        let function = version.map(|version| version.function.clone());
        let function = function.ok_or_else(|| EngineError::Refused("it has no cells".into()))?;
        let mut process = self.processes.take().map_err(|err| unable(&err))?;
        let output = process.child.stdout.take().zip(process.child.stderr.take());
        let instance = Instance {
            labels: spec.labels.to_map(),
            function,
            sockets: spec.sockets.clone(),
            waiting: Some(process),
            output,
            exit: watch::channel(None).1,
            terminate: None,
            kill: None,
        };
        self.instances.lock().insert(spec.name.clone(), instance);
        Ok(())
    }

    async fn attach(
        &self,
        name: &ContainerName,
    ) -> Result<BoxStream<'static, Output>, EngineError> {
        let (stdout, stderr) = self.with(name, |instance| instance.output.take())?;
        let pieces = |stream| {
            stream::StreamExt::filter_map(stream, |piece: io::Result<_>| async { piece.ok() })
        };
        let stdout = pieces(ReaderStream::new(stdout).boxed()).map(Output::Stdout);
        let stderr = pieces(ReaderStream::new(stderr).boxed()).map(Output::Stderr);
        Ok(stream::select(stdout, stderr).boxed())
    }

    async fn start(&self, name: &ContainerName) -> Result<(), EngineError> {
        let (mut process, sockets, function) = self.with(name, |instance| {
            Some((instance.waiting.take()?, instance.sockets.clone()?, instance.function.clone()))
        })?;
        let env = [("EPSILON_SOCKETS".to_owned(), sockets.display().to_string())];
        let env = BTreeMap::from(env);
        let inspect = self.port(&function);
        let order = Order { run: "./main.js", arguments: &[], env, inspect };
        process.order(&order).await.map_err(|err| unable(&err))?;
        let (terminator, terminate) = oneshot::channel();
        let (killer, kill) = oneshot::channel();
        let (report, exit) = watch::channel(None);
        tokio::spawn(wait_or_kill(process, terminate, kill, report));
        self.with(name, |instance| {
            instance.terminate = Some(terminator);
            (instance.kill, instance.exit) = (Some(killer), exit);
            Some(())
        })
    }

    async fn address(&self, _: &ContainerName) -> Result<IpAddr, EngineError> {
        Ok(Ipv4Addr::LOCALHOST.into())
    }

    async fn wait(&self, name: &ContainerName) -> Result<Exit, EngineError> {
        let mut exit = self.with(name, |instance| Some(instance.exit.clone()))?;
        let exit = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        exit.ok_or_else(|| EngineError::NotFound(name.to_string()))
    }

    async fn terminate(&self, name: &ContainerName) -> Result<(), EngineError> {
        let terminate = self.with(name, |instance| instance.terminate.take())?;
        terminate.send(()).map_err(|()| EngineError::NotFound(name.to_string()))
    }

    async fn remove(&self, name: &ContainerName) -> Result<(), EngineError> {
        let Some(instance) = self.instances.lock().remove(name) else { return Ok(()) };
        let Instance { kill, mut exit, .. } = instance;
        if let Some(kill) = kill {
            let _ = kill.send(()); // it has already ended
            drop(timeout(KILL_TIMEOUT, exit.wait_for(Option::is_some)).await);
        }
        Ok(())
    }

    async fn list(&self, _: &VmId) -> Result<Vec<ContainerInfo>, EngineError> {
        let instances = self.instances.lock();
        let found = instances.iter().map(|(name, instance)| ContainerInfo {
            name: name.clone(),
            labels: instance.labels.clone(),
            is_running: instance.exit.borrow().is_none(),
        });
        Ok(found.collect())
    }

    async fn ensure_network(&self, _: &NetworkSpec) -> Result<(), EngineError> {
        Ok(())
    }

    async fn remove_network(&self, _: &str) -> Result<(), EngineError> {
        Ok(())
    }

    async fn ensure_firewall(&self, _: &Firewall) -> Result<(), EngineError> {
        Ok(())
    }

    async fn remove_firewall(&self, _: &str) -> Result<(), EngineError> {
        Ok(())
    }
}

/// Waits for the end of a process, or kills it.
async fn wait_or_kill(
    process: Process,
    mut terminate: oneshot::Receiver<()>,
    mut kill: oneshot::Receiver<()>,
    report: watch::Sender<Option<Exit>>,
) {
    let Process { mut child, orders, group } = process;
    let status = loop {
        tokio::select! {
            // The receivers may be gone: the exit is reported once, and a second request is not
            // needed.
            status = child.wait() => break status,
            Ok(()) = &mut terminate, if !terminate.is_terminated() => group.terminate(),
            _ = &mut kill => {
                group.kill();
                break child.wait().await;
            }
        }
    };
    group.ended();
    drop(orders);
    let code = status.map_or(-1, |status| {
        // Like a shell and Docker report a signal.
        status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
    });
    report.send_replace(Some(Exit { code: code.into(), out_of_memory: false }));
}

fn unable(err: &io::Error) -> EngineError {
    EngineError::Refused(format!("Node could not be started: {err}"))
}
