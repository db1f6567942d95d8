//! The image path from nothing to an instance that takes calls:
//! `image → folder → container → attached log → running → listening → code loaded`.
//!
//! Called by `runner.rs`, which also takes everything away again, whether or not the start worked.

use super::{
    Instance, Reached,
    connections::Upstream,
    control::{self, ControlError, Init},
    sockets::{CONTROL, CodeUser, SocketFolder},
};
use crate::{
    engine::{Attachment, ContainerName, ContainerSpec, EngineError, Exit, LocalImage, SOCKETS},
    labels::Labels,
    logs::attach::Tap,
    vm::LocalVm,
};
use epsilon_api::{
    chain::Chain,
    error::CallError,
    function::{Network, Runtime},
    ids::FunctionName,
    vm::StartPhases,
};
use futures_util::future::BoxFuture;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::UnixStream,
    time::{Instant, sleep, timeout},
};

/// The port of `runtime: container`.
const PORT: u16 = 8080;
/// First pause between two looks for a listener; doubled up to [`SLOW_LOOK`]. A wrapper needs about 40 ms.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const SLOW_LOOK: Duration = Duration::from_millis(4);
/// One probe of a container that accepted but says nothing.
const PROBE: Duration = Duration::from_secs(5);
/// How long the last lines of a dead container may take to arrive, for the report on it.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Why no instance came of a start. Shared by all calls that waited for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StartFailure {
    /// The code threw, exited or hung while loading; the text is for its author.
    Init(String),
    /// This VM cannot run it now; the text is for the operator.
    NoCapacity(String),
    /// Nobody waits for it any more, or it was told to go.
    CalledOff,
}

impl StartFailure {
    pub(crate) fn to_error(&self, function: &FunctionName) -> CallError {
        let function = function.clone();
        match self {
            Self::Init(detail) => CallError::InitFailed { function, detail: detail.clone() },
            Self::NoCapacity(cause) => {
                CallError::NoCapacity { function, cause: cause.clone().into() }
            }
            Self::CalledOff => {
                CallError::NoCapacity { function, cause: "the start was called off".into() }
            }
        }
    }

    /// The metric label.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Init(_) => "init_failed",
            Self::NoCapacity(_) => "no_capacity",
            Self::CalledOff => "called_off",
        }
    }
}

impl From<EngineError> for StartFailure {
    fn from(err: EngineError) -> Self {
        Self::NoCapacity(Chain(&err).to_string())
    }
}

/// The end of a container's process.
pub(crate) type ExitWatch = BoxFuture<'static, Result<Exit, EngineError>>;

/// An instance that is ready for calls.
pub(crate) struct Started {
    pub(crate) phases: StartPhases,
    pub(crate) exit: ExitWatch,
}

/// `pull`: what it took to have `image`.
pub(crate) async fn start(
    vm: &Arc<LocalVm>,
    instance: &Instance,
    image: LocalImage,
    pull: Duration,
) -> Result<Started, StartFailure> {
    let version = &instance.version;
    let spec = &version.spec;
    let mut phases = StartPhases { pull, ..StartPhases::default() };
    let mut since = Instant::now();
    let mut lap = || {
        let took = since.elapsed();
        since = Instant::now();
        took
    };

    let network = attachment(vm, spec.network, spec.runtime).await?;
    let user = CodeUser::of_this_process();
    let folder = match spec.runtime {
        Runtime::Node => Some(
            SocketFolder::create(vm.sockets_folder(&instance.id), user)
                .map_err(|err| StartFailure::NoCapacity(format!("no folder for sockets: {err}")))?,
        ),
        Runtime::Container => None,
    };
    let env = match spec.runtime {
        Runtime::Node => vec![("EPSILON_SOCKETS".to_owned(), SOCKETS.to_owned())],
        Runtime::Container => {
            let mut env: Vec<_> = spec.env.clone().into_iter().collect();
            env.retain(|(key, _)| key != "PORT");
            env.push(("PORT".into(), PORT.to_string()));
            env
        }
    };
    let mut container = ContainerSpec {
        name: instance.container.clone(),
        image,
        labels: Labels {
            vm: vm.id.clone(),
            instance: instance.id.clone(),
            version: Arc::clone(version),
        },
        env,
        sockets: folder.as_ref().map(|folder| folder.path().to_owned()),
        user: user.to_string(),
        memory: spec.memory,
        cpu: spec.cpu,
        network,
        limits: vm.config.limits.clone(),
    };
    instance.reach(Reached::Container);
    if let Err(err) = create(vm, instance, &container).await {
        let EngineError::NotFound(_) = err else { return Err(err.into()) };
        // The image was removed behind our back: look again, once.
        vm.images.lost(&version.image);
        container.image = vm.images.ensure(&*vm.engine, version).await?;
        create(vm, instance, &container).await?;
    }
    phases.create = lap();

    let tap = Tap::open(vm, instance).await?; // before the start, or the first lines are lost
    instance.reach(Reached::Process);
    if let Err(err) = run(vm, instance).await {
        let EngineError::NotFound(_) = err else { return Err(err.into()) };
        // The network was removed behind our back: make it, once.
        vm.network.doubt();
        attachment(vm, spec.network, spec.runtime).await?;
        run(vm, instance).await?;
    }
    let mut exit = wait(vm, &instance.container);

    let deadline = Instant::now() + vm.config.start_timeout;
    let ready = async {
        match folder {
            Some(folder) => {
                let control = wait_for_wrapper(&folder).await;
                phases.start = lap();
                load(control, instance, vm.engine.code()).await?;
                phases.init = lap();
                Ok(Upstream::Sockets(folder))
            }
            None => {
                let address = SocketAddr::new(vm.engine.address(&instance.container).await?, PORT);
                wait_for_server(address).await;
                phases.start = lap();
                Ok(Upstream::Tcp(address))
            }
        }
    };
    // The exit first: a wrapper that died has no other news.
    let outcome = tokio::select! {
        biased;
        exit = &mut exit => Err(died(exit, tap).await),
        ready = tokio::time::timeout_at(deadline, ready) => match ready {
            Ok(ready) => match ready {
                Ok(upstream) => {
                    instance.connections.reach(upstream);
                    Ok(Started { phases, exit: watch_exit(vm, &instance.container, exit) })
                }
                // A wrapper that hung up is about to exit; its exit says more than its silence.
                Err(failure) => match timeout(LAST_WORDS, &mut exit).await {
                    Ok(exit) => Err(died(exit, tap).await),
                    Err(_) => Err(failure),
                },
            },
            Err(_) => Err(StartFailure::Init(format!(
                "the code was not loaded within {}{}",
                humantime::format_duration(vm.config.start_timeout),
                tap.last_lines(),
            ))),
        },
    };
    match outcome {
        Err(failure @ StartFailure::Init(_)) => Err(or_engine(vm, failure).await),
        outcome => outcome,
    }
}

async fn create(
    vm: &Arc<LocalVm>,
    instance: &Instance,
    container: &ContainerSpec,
) -> Result<(), EngineError> {
    let (engine, container) = (Arc::clone(&vm.engine), container.clone());
    instance.have_engine(vm, async move { engine.create(&container).await }).await
}

async fn run(vm: &Arc<LocalVm>, instance: &Instance) -> Result<(), EngineError> {
    let (engine, name) = (Arc::clone(&vm.engine), instance.container.clone());
    instance.have_engine(vm, async move { engine.start(&name).await }).await
}

/// Which network, if any; refuses what could not be kept safe.
async fn attachment(
    vm: &LocalVm,
    network: Network,
    runtime: Runtime,
) -> Result<Attachment, StartFailure> {
    match (network, runtime) {
        (Network::None, Runtime::Node) => Ok(Attachment::None),
        (Network::None, Runtime::Container) => Err(StartFailure::Init(
            "`runtime: container` is called over the network and needs `network: egress`".into(),
        )),
        (Network::Egress, Runtime::Node | Runtime::Container) => vm
            .network
            .attachment(&vm.engine)
            .await
            .map_err(|err| StartFailure::NoCapacity(Chain(&err).to_string())),
    }
}

/// Asks the engine for the end of the container. What it refuses is asked again; that it is away is an answer.
pub(crate) fn wait(vm: &Arc<LocalVm>, container: &ContainerName) -> ExitWatch {
    let (vm, container) = (Arc::clone(vm), container.clone());
    Box::pin(async move {
        loop {
            match vm.engine.wait(&container).await {
                Err(EngineError::Refused(_) | EngineError::Registry(_) | EngineError::Same(_)) => {
                    pause(&vm).await;
                }
                end @ (Ok(_) | Err(EngineError::NotFound(_) | EngineError::Down(_))) => return end,
            }
        }
    })
}

/// Goes on asking after an `answer` that the engine is away: a container may outlive that.
pub(crate) fn watch_exit(
    vm: &Arc<LocalVm>,
    container: &ContainerName,
    mut answer: ExitWatch,
) -> ExitWatch {
    let (vm, container) = (Arc::clone(vm), container.clone());
    Box::pin(async move {
        loop {
            match answer.await {
                Err(EngineError::Down(_)) => pause(&vm).await,
                end => return end,
            }
            answer = wait(&vm, &container);
        }
    })
}

/// Between two questions to an engine that is not well.
async fn pause(vm: &LocalVm) {
    sleep(vm.config.reconcile_every.min(Duration::from_secs(1))).await;
}

/// An engine that is stopped takes its containers with it, and first asks them to end: that is no fault of the code.
async fn died(exit: Result<Exit, EngineError>, tap: Tap) -> StartFailure {
    let how = match exit {
        Ok(Exit { code: Exit::ASKED, .. }) => {
            let how = "somebody asked the container to end while it was loading";
            return StartFailure::NoCapacity(how.into());
        }
        Ok(exit) => format!("the process ended while loading: {exit}"),
        Err(EngineError::NotFound(_)) => "the container vanished while loading".to_owned(),
        Err(
            err @ (EngineError::Down(_)
            | EngineError::Refused(_)
            | EngineError::Registry(_)
            | EngineError::Same(_)),
        ) => return err.into(),
    };
    let lines = tap.last_lines_after(LAST_WORDS).await;
    StartFailure::Init(format!("{how}{lines}"))
}

/// The same, where the container went before its engine hung up.
async fn or_engine(vm: &LocalVm, failure: StartFailure) -> StartFailure {
    match timeout(PROBE, vm.engine.ping()).await {
        Ok(Ok(_)) => failure,
        Ok(Err(err)) => err.into(),
        Err(_) => StartFailure::NoCapacity("the container engine does not answer".into()),
    }
}

async fn wait_for_wrapper(folder: &SocketFolder) -> UnixStream {
    let mut pause = FIRST_LOOK;
    loop {
        if let Ok(control) = folder.connect(CONTROL).await {
            return control;
        }
        sleep(pause).await;
        pause = (pause * 2).min(SLOW_LOOK);
    }
}

async fn load(control: UnixStream, instance: &Instance, root: &str) -> Result<(), StartFailure> {
    let init = Init::new(&instance.version, &instance.id, root);
    control::init(control, &init).await.map_err(|err| {
        StartFailure::Init(match err {
            ControlError::Failed { message, stack } => match stack {
                Some(stack) if stack.contains(&message) => stack,
                Some(stack) => format!("{message}\n{stack}"),
                None => message,
            },
            other @ (ControlError::NotListening(_) | ControlError::NoAnswer(_)) => {
                Chain(&other).to_string()
            }
        })
    })
}

/// Ready is a server that accepts and answers anything at all.
async fn wait_for_server(address: SocketAddr) {
    let mut pause = FIRST_LOOK;
    while !matches!(timeout(PROBE, probe(address)).await, Ok(Ok(()))) {
        sleep(pause).await;
        pause = (pause * 2).min(SLOW_LOOK);
    }
}

pub(crate) async fn probe(address: SocketAddr) -> io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nuser-agent: epsilon-ready\r\nconnection: close\r\n\r\n")
        .await?;
    match stream.read(&mut [0; 1]).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
