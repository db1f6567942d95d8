//! A temporary container: runs untrusted code during a build. Limited, without privileges, and
//! removed when its handle is dropped, also when the build is cancelled during its creation.
//!
//! Not an instance: it serves no calls. Used by `runtime`, `dependencies` and `inspect`.

use super::{CONTAINER_LABEL, Engine, EngineError, lines::Lines};
use bollard::{
    container::LogOutput,
    errors::Error as Bollard,
    models::{
        ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountType, ResourcesUlimits,
    },
    query_parameters::{
        CreateContainerOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
        WaitContainerOptionsBuilder,
    },
};
use bytes::Bytes;
use epsilon_api::{
    chain::Chain,
    ids::InstanceId,
    units::{Bytes as Size, MilliCores},
};
use futures_util::{Stream, StreamExt, TryStreamExt};
use std::{
    any::Any, collections::HashMap, collections::VecDeque, io, path::PathBuf, sync::Arc,
    time::Duration,
};
use tokio::task::JoinHandle;

/// Lines of output for an error message.
const TAIL: usize = 40;
/// Size of a container's log in the engine.
const LOG_SIZE: &str = "16m";
/// Exit code of a killed process, 128 + SIGKILL.
pub(crate) const KILLED: i64 = 137;
/// Pauses between checks for the engine's out-of-memory event.
const OOM_EVENT_PAUSES: [Duration; 5] = [
    Duration::from_millis(20),
    Duration::from_millis(80),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::ZERO,
];

/// The description of a container.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    /// Part of the container's name: `npm`, `inspect`.
    pub(crate) purpose: &'static str,
    pub(crate) image: String,
    pub(crate) command: Vec<String>,
    /// Entries as `NAME=value`.
    pub(crate) env: Vec<String>,
    pub(crate) mounts: Vec<Bind>,
    pub(crate) workdir: &'static str,
    pub(crate) rights: Rights,
    /// The engine's network; `None` for no network.
    pub(crate) network: Option<String>,
    pub(crate) limits: Limits,
    /// Largest file that can be written; `None` for no limit.
    pub(crate) largest_file: Option<Size>,
}

/// A folder or file of this machine, mounted inside.
#[derive(Clone, Debug)]
pub(crate) struct Bind {
    pub(crate) host: PathBuf,
    pub(crate) inside: &'static str,
    pub(crate) writable: bool,
}

/// Privileges of the code inside.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rights {
    /// None: this user, no capabilities, a read-only root, only `/tmp` is writable.
    None { uid: u32, gid: u32 },
    /// Root over the container's own file system, as package managers need it. Only for our own
    /// commands.
    Install,
}

/// Resource limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) memory: Size,
    pub(crate) cpu: MilliCores,
    pub(crate) pids: u32,
    pub(crate) time: Duration,
}

/// How a container ended, and its last lines of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) exit: Exit,
    pub(crate) tail: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i64),
    OutOfMemory,
    TimedOut,
}

/// A container of the builder. Dropping it removes it in the background.
#[derive(Debug)]
pub(crate) struct Container {
    engine: Engine,
    name: String,
    limits: Limits,
    /// Set until the engine has answered whether it created the container.
    creating: Option<JoinHandle<Result<(), Bollard>>>,
    /// What must exist until the container is removed: the folders mounted in it.
    keep: Option<Arc<dyn Any + Send + Sync>>,
}

impl Engine {
    /// Creates a container without starting it. `keep` is dropped after the container is removed.
    pub(crate) async fn create(
        &self,
        task: &Task,
        keep: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Container, EngineError> {
        let name = format!("epsilon-{}-{}", task.purpose, InstanceId::random());
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let docker = self.docker.clone();
        let body = body(task, &self.owner);
        // A task of its own: a dropped request may still create a container.
        let creating = self
            .tasks
            .spawn(async move { docker.create_container(Some(options), body).await.map(drop) });
        let mut container = Container {
            engine: self.clone(),
            name,
            limits: task.limits,
            creating: Some(creating),
            keep,
        };
        let made = match container.creating.as_mut() {
            Some(creating) => creating.await,
            None => Ok(Ok(())),
        };
        container.creating = None;
        let doing = "making a container";
        match made {
            Ok(made) => made.map_err(EngineError::new(doing))?,
            Err(gone) => {
                return Err(EngineError::new(doing)(Bollard::IOError {
                    err: io::Error::other(gone),
                }));
            }
        }
        Ok(container)
    }
}

impl Container {
    /// Starts it, reports each line of output, and waits for its end.
    pub(crate) async fn run(
        &self,
        mut on_line: impl FnMut(&str) + Send,
    ) -> Result<Ended, EngineError> {
        let mut tail = VecDeque::with_capacity(TAIL);
        let mut take_line = |line: &str| {
            if tail.len() == TAIL {
                tail.pop_front();
            }
            tail.push_back(line.to_owned());
            on_line(line);
        };
        let exit = match tokio::time::timeout(self.limits.time, self.follow(&mut take_line)).await {
            Ok(exit) => exit?,
            Err(_) => Exit::TimedOut,
        };
        Ok(Ended { exit, tail: tail.into() })
    }

    /// The engine's name of it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its whole file system as a tar. For a container that has ended.
    pub(crate) fn export(&self) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        self.engine.docker.export_container(&self.name).map_err(io::Error::other).boxed()
    }

    async fn follow(&self, on_line: &mut (impl FnMut(&str) + Send)) -> Result<Exit, EngineError> {
        let docker = &self.engine.docker;
        docker
            .start_container(&self.name, None::<bollard::query_parameters::StartContainerOptions>)
            .await
            .map_err(EngineError::new("starting a container"))?;
        let options = LogsOptionsBuilder::default()
            .follow(true)
            .stdout(true)
            .stderr(true)
            .tail("all")
            .build();
        let output = async {
            let mut output = Box::pin(docker.logs(&self.name, Some(options)));
            // One buffer per stream, so that their lines do not mix.
            let mut out = Lines::default();
            let mut err = Lines::default();
            while let Some(piece) = output.next().await {
                match piece {
                    Ok(LogOutput::StdErr { message }) => err.push(&message, on_line),
                    Ok(piece) => out.push(&piece.into_bytes(), on_line),
                    Err(err) => {
                        tracing::warn!(error = %Chain(&err), "Output of a container broke off; waiting for its end.");
                        break;
                    }
                }
            }
            out.finish(on_line);
            err.finish(on_line);
        };
        let (code, ()) = tokio::join!(self.exit_code(), output);
        match code? {
            // Either the engine's memory limit or the code itself.
            KILLED if self.ran_out_of_memory().await => Ok(Exit::OutOfMemory),
            code => Ok(Exit::Code(code)),
        }
    }

    async fn exit_code(&self) -> Result<i64, EngineError> {
        let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
        let mut end = Box::pin(self.engine.docker.wait_container(&self.name, Some(options)));
        match end.next().await {
            Some(Ok(ended)) => Ok(ended.status_code),
            Some(Err(Bollard::DockerContainerWaitError { code, .. })) => Ok(code),
            Some(Err(err)) => Err(EngineError::new("waiting for a container")(err)),
            None => Err(EngineError::new("waiting for a container")(Bollard::IOError {
                err: io::ErrorKind::UnexpectedEof.into(),
            })),
        }
    }

    /// The engine learns of out-of-memory and of the exit separately: on a busy machine the former
    /// may arrive last.
    async fn ran_out_of_memory(&self) -> bool {
        for pause in OOM_EVENT_PAUSES {
            let options = None::<bollard::query_parameters::InspectContainerOptions>;
            let found = self.engine.docker.inspect_container(&self.name, options).await;
            if found.is_ok_and(|c| c.state.and_then(|s| s.oom_killed).unwrap_or(false)) {
                return true;
            }
            tokio::time::sleep(pause).await;
        }
        false
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let docker = self.engine.docker.clone();
        let name = std::mem::take(&mut self.name);
        let creating = self.creating.take();
        let keep = self.keep.take();
        self.engine.tasks.spawn(async move {
            if let Some(creating) = creating {
                let _made_or_not = creating.await;
            }
            let force = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            match docker.remove_container(&name, Some(force)).await {
                Ok(()) | Err(Bollard::DockerResponseServerError { status_code: 404 | 409, .. }) => {}
                // The next start removes it by its label.
                Err(err) => {
                    tracing::warn!(container = name, error = %Chain(&err), "Container of a build could not be removed; the next start tries again.");
                }
            }
            drop(keep);
        });
    }
}

fn body(task: &Task, owner: &str) -> ContainerCreateBody {
    let strings = |texts: &[&str]| texts.iter().map(|&t| t.to_owned()).collect();
    let mut host = HostConfig {
        memory: i64::try_from(task.limits.memory.get()).ok(),
        memory_swap: i64::try_from(task.limits.memory.get()).ok(),
        nano_cpus: Some(i64::from(task.limits.cpu.0) * 1_000_000),
        pids_limit: Some(i64::from(task.limits.pids)),
        network_mode: Some(task.network.clone().unwrap_or_else(|| "none".into())),
        mounts: Some(task.mounts.iter().map(mount).collect()),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".into()),
            config: Some(HashMap::from([("max-size".into(), LOG_SIZE.into())])),
        }),
        ulimits: task.largest_file.map(|size| {
            let size = i64::try_from(size.get()).ok();
            vec![ResourcesUlimits { name: Some("fsize".into()), soft: size, hard: size }]
        }),
        // Reaps orphans of install scripts, and forwards signals.
        init: Some(true),
        ..HostConfig::default()
    };
    let user = match task.rights {
        Rights::None { uid, gid } => {
            host.readonly_rootfs = Some(true);
            host.cap_drop = Some(strings(&["ALL"]));
            host.security_opt = Some(strings(&["no-new-privileges"]));
            // Executable: install scripts unpack and run tools there. It counts as memory.
            host.tmpfs =
                Some(HashMap::from([("/tmp".into(), "rw,exec,nosuid,nodev,mode=1777".into())]));
            format!("{uid}:{gid}")
        }
        Rights::Install => "0:0".into(),
    };
    ContainerCreateBody {
        image: Some(task.image.clone()),
        entrypoint: Some(task.command.clone()),
        cmd: Some(Vec::new()),
        env: Some(task.env.clone()),
        user: Some(user),
        working_dir: Some(task.workdir.to_owned()),
        labels: Some(HashMap::from([(CONTAINER_LABEL.to_owned(), owner.to_owned())])),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

/// `mounts`, not `binds`: a path with a colon stays one path, and a missing folder is an error
/// instead of a new folder.
fn mount(bind: &Bind) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(bind.host.to_string_lossy().into_owned()),
        target: Some(bind.inside.to_owned()),
        read_only: Some(!bind.writable),
        ..Mount::default()
    }
}
