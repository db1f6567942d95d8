//! The image path, from nothing to an instance that takes calls:
//! `image → socket directory → container → attached log → running → listening → code loaded`.
//!
//! For versions that fit no cell, and for VMs without cells. Called by `runner/start_path.rs`.

use crate::container::connections::Upstream;
use crate::container::control::{ControlConnection, Init};
use crate::container::exit::{wait, watch_exit};
use crate::container::failure::{LoadFailure, StartFailure};
use crate::container::output::AttachedOutput;
use crate::container::start::{PROBE, Started, attachment, wait_until_loaded};
use crate::container::unsettled::Unsettled;
use crate::context::VmContext;
use crate::engine::{ContainerSpec, EngineError, LocalImage, SOCKETS};
use crate::instance::{Instance, StartProgress};
use crate::labels::Labels;
use epsilon_api::{function::Runtime, vm::StartPhases};
use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// The port of `runtime: container`.
const PORT: u16 = 8080;
/// First pause between two probes of a server; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(4);

/// `pull`: how long it took to have `image`.
pub(crate) async fn start(
    context: &Arc<VmContext>,
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

    let network = attachment(context, spec.network, spec.runtime).await?;
    if let Some(why) = image.unfit() {
        return Err(StartFailure::Init(why));
    }
    let lease =
        crate::container::start::lease_user(context).await.map_err(StartFailure::NoCapacity)?;
    let (user, own_id) = (lease.user(), lease.own_id());
    let folder = match spec.runtime {
        Runtime::Node => Some(
            context
                .make_sockets(instance.id(), &lease)
                .map_err(|err| StartFailure::NoCapacity(format!("no socket directory: {err}")))?,
        ),
        Runtime::Container => None,
    };
    instance.set_user(lease);
    let env = match spec.runtime {
        Runtime::Node => vec![("EPSILON_SOCKETS".to_owned(), SOCKETS.to_owned())],
        Runtime::Container => {
            let mut env: Vec<_> = spec.env.clone().into_iter().collect();
            // The platform sets the port; a value in the function's settings would be wrong.
            env.retain(|(key, _)| key != "PORT");
            env.push(("PORT".into(), PORT.to_string()));
            env
        }
    };
    let mut container = ContainerSpec {
        name: instance.container().clone(),
        image,
        labels: Labels {
            vm: context.id.clone(),
            instance: instance.id().clone(),
            version: Some(Arc::clone(version)),
            user: own_id,
        },
        env,
        mounts: None,
        sockets: folder.as_ref().map(|folder| folder.path().to_owned()),
        passwd: folder.as_ref().and_then(|folder| folder.passwd()).map(Path::to_owned),
        user: user.to_string(),
        memory: spec.memory,
        cpu: spec.cpu,
        network,
        limits: context.config.limits.clone(),
    };
    instance.note_progress(StartProgress::Container);
    if let Err(err) = create(context, instance, &container).await {
        let EngineError::NotFound(_) = err else { return Err(err.into()) };
        // The image was removed without the agent: look again, once.
        context.images.mark_removed(&version.image);
        container.image = context.images.ensure(&*context.engine, version).await?;
        create(context, instance, &container).await?;
    }
    phases.create = lap();

    // Attached before the start, or the first lines are lost.
    let output = AttachedOutput::open(context, instance.container(), &instance.gone).await?;
    output.belongs_to(version, instance.id());
    instance.note_progress(StartProgress::Process);
    if let Err(err) = run(context, instance).await {
        let EngineError::NotFound(_) = err else { return Err(err.into()) };
        // The network was removed without the agent: create it, once.
        context.network.invalidate();
        attachment(context, spec.network, spec.runtime).await?;
        run(context, instance).await?;
    }
    let exit = wait(context, instance.container());

    let load = async {
        match folder {
            Some(folder) => {
                let mut control = ControlConnection::wait(&folder).await;
                phases.start = lap();
                let unsettled = Unsettled::open(&folder).await;
                control.init(&Init::new(version, instance.id(), context.engine.code())).await?;
                folder.close();
                Ok(Upstream::Sockets(folder, unsettled))
            }
            None => {
                let address = context.engine.address(instance.container()).await;
                let address = address.map_err(|err| LoadFailure::Silent(err.into()))?;
                let address = SocketAddr::new(address, PORT);
                wait_for_server(address).await;
                phases.start = lap();
                Ok(Upstream::Tcp(address))
            }
        }
    };
    let (upstream, exit) = match wait_until_loaded(context, exit, output, load).await {
        Ok(settled) => settled,
        Err(LoadFailure::Start(failure) | LoadFailure::Silent(failure)) => return Err(failure),
        Err(LoadFailure::NotMounted) => {
            return Err(StartFailure::Init("the image holds no code".into()));
        }
    };
    if spec.runtime == Runtime::Node {
        phases.init = lap();
    }
    instance.connections.set_upstream(upstream);
    Ok(Started { phases, exit: watch_exit(context, instance.container(), exit), limits: None })
}

async fn create(
    context: &Arc<VmContext>,
    instance: &Instance,
    container: &ContainerSpec,
) -> Result<(), EngineError> {
    let engine = Arc::clone(&context.engine);
    let container = container.clone();
    instance.run_engine_request(context, async move { engine.create(&container).await }).await
}

async fn run(context: &Arc<VmContext>, instance: &Instance) -> Result<(), EngineError> {
    let engine = Arc::clone(&context.engine);
    let name = instance.container().clone();
    instance.run_engine_request(context, async move { engine.start(&name).await }).await
}

/// Waits until the server accepts a connection and sends at least one byte.
async fn wait_for_server(address: SocketAddr) {
    let mut pause = FIRST_PAUSE;
    while !matches!(timeout(PROBE, probe(address)).await, Ok(Ok(()))) {
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn probe(address: SocketAddr) -> io::Result<()> {
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
