//! What both start paths share: a container that runs loads its code, or ends, or is silent.
//!
//! Called by the paths of `instance/runner`: `image.rs` creates a container from the function's
//! image, `assign.rs` loads the code into a cell. The runner removes everything again, whether or
//! not the start worked.

use super::exit::ExitWatch;
use super::failure::{LoadFailure, StartFailure};
use super::output::AttachedOutput;
use super::{connections::Upstream, user_ids::UserIdLease};
use crate::context::VmContext;
use crate::engine::{Attachment, EngineError, Exit};
use epsilon_api::{
    chain::Chain,
    function::{Network, Runtime},
    vm::StartPhases,
};
use std::{sync::Arc, time::Duration};
use tokio::{task::JoinHandle, time::timeout};

/// Timeout of one probe: of a container that accepted but sends nothing, and of the engine.
pub(crate) const PROBE: Duration = Duration::from_secs(5);
/// How long to wait for the exit of a process that stopped answering.
const EXIT_STATUS_WAIT: Duration = Duration::from_secs(5);
/// How long the last log lines of a dead container may take to arrive, for its report.
const LAST_LINES_TIMEOUT: Duration = Duration::from_millis(500);

/// An instance that is ready for calls.
pub(crate) struct Started {
    pub(crate) phases: StartPhases,
    pub(crate) exit: ExitWatch,
    /// Its limits are being set during its first calls; if that fails, it has to be stopped.
    pub(crate) limits: Option<JoinHandle<Result<(), EngineError>>>,
}

/// Waits within the limit until a running container has loaded its code or exits. On success
/// returns its upstream and the exit watch.
pub(crate) async fn wait_until_loaded(
    context: &Arc<VmContext>,
    mut exit: ExitWatch,
    output: AttachedOutput,
    load: impl Future<Output = Result<Upstream, LoadFailure>>,
) -> Result<(Upstream, ExitWatch), LoadFailure> {
    // The exit first: a wrapper that died reports nothing else.
    let failure = tokio::select! {
        biased;
        exit = &mut exit => failure_of_exit(exit, output).await,
        loaded = timeout(context.config.start_timeout, load) => match loaded {
            Ok(Ok(upstream)) => return Ok((upstream, exit)),
            Ok(Err(LoadFailure::NotMounted)) => return Err(LoadFailure::NotMounted),
            Ok(Err(LoadFailure::Start(failure))) => failure,
            Ok(Err(LoadFailure::Silent(failure))) => match timeout(EXIT_STATUS_WAIT, &mut exit).await {
                Ok(exit) => failure_of_exit(exit, output).await,
                Err(_) => failure,
            },
            Err(_) => StartFailure::Init(format!(
                "the code was not loaded within {}{}",
                humantime::format_duration(context.config.start_timeout),
                output.last_lines(),
            )),
        },
    };
    Err(LoadFailure::Start(match failure {
        StartFailure::Init(_) => or_engine_down(context, failure).await,
        StartFailure::NoCapacity(_) | StartFailure::Cancelled => failure,
    }))
}

/// Takes a user id for one instance. The error is for the operator.
pub(crate) async fn lease_user(context: &Arc<VmContext>) -> Result<UserIdLease, String> {
    let of = Arc::clone(context);
    let leased = tokio::task::spawn_blocking(move || of.users.lease()).await;
    match leased {
        Ok(leased) => leased.map_err(|err| Chain(&err).to_string()),
        Err(err) => Err(err.to_string()),
    }
}

/// The network to attach, if any; refuses combinations that cannot be isolated.
pub(crate) async fn attachment(
    context: &VmContext,
    network: Network,
    runtime: Runtime,
) -> Result<Attachment, StartFailure> {
    match (network, runtime) {
        (Network::None, Runtime::Node) => Ok(Attachment::None),
        (Network::None, Runtime::Container) => Err(StartFailure::Init(
            "`runtime: container` is called over the network and needs `network: egress`".into(),
        )),
        (Network::Egress, Runtime::Node | Runtime::Container) => context
            .network
            .attachment(&context.engine)
            .await
            .map_err(|err| StartFailure::NoCapacity(Chain(&err).to_string())),
    }
}

/// An engine that shuts down sends SIGTERM to its containers: that is no fault of the code.
async fn failure_of_exit(exit: Result<Exit, EngineError>, output: AttachedOutput) -> StartFailure {
    let how = match exit {
        Ok(Exit { code: Exit::SIGTERM, .. }) => {
            let how = "the container got SIGTERM while it was loading";
            return StartFailure::NoCapacity(how.into());
        }
        Ok(exit) => format!("the process ended while loading: {exit}"),
        Err(EngineError::NotFound(_)) => "the container vanished while loading".to_owned(),
        Err(
            err @ (EngineError::Down(_)
            | EngineError::Refused(_)
            | EngineError::Registry(_)
            | EngineError::NotHere(_)
            | EngineError::Shared(_)),
        ) => return err.into(),
    };
    let lines = output.last_lines_after(LAST_LINES_TIMEOUT).await;
    StartFailure::Init(format!("{how}{lines}"))
}

/// Replaces the failure by the engine's, if the container ended because its engine is down.
async fn or_engine_down(context: &VmContext, failure: StartFailure) -> StartFailure {
    match timeout(PROBE, context.engine.ping()).await {
        Ok(Ok(_)) => failure,
        Ok(Err(err)) => err.into(),
        Err(_) => StartFailure::NoCapacity("the container engine does not answer".into()),
    }
}
