//! Boots a cell: `base → directories → container → attached log → running → listening → warm`.
//!
//! Runs in a task of its own that is never cancelled, so that the engine is not left with half a
//! container. Called by `refill.rs`, and for a start that found no ready cell.

use super::compatibility::Kind;
use super::resources::CellResources;
use super::{Cell, Cells};
use crate::container::budget::Grant;
use crate::container::control::ControlConnection;
use crate::container::exit::{self, ExitWatch};
use crate::container::failure::StartFailure;
use crate::container::output::AttachedOutput;
use crate::container::start;
use crate::container::unsettled::Unsettled;
use crate::engine::{ContainerSpec, EngineError, SOCKETS};
use crate::labels::Labels;
use epsilon_api::{chain::Chain, function::Runtime, units::MilliCores, vm::StartPhases};
use futures_util::FutureExt;
use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

/// CPU limit of a cell until it is assigned: what most functions have.
pub(crate) const CPU: MilliCores = MilliCores::ONE;
/// Mode of the directory that code is mounted on: the cell's user can read it, and write nothing.
const READABLE: u32 = 0o755;

/// Boots one cell. `memory`: its grant; `None` for a cell of a start, which holds the memory
/// itself.
///
/// # Errors
/// The reason, for the operator. What was made is being removed.
pub(crate) async fn boot(
    cells: &Arc<Cells>,
    kind: Kind,
    memory: Option<Grant>,
    phases: &mut StartPhases,
) -> Result<Cell, String> {
    let context = &cells.context;
    let text = |err: EngineError| Chain(&err).to_string();
    let is_spare = memory.is_some();
    let began = Instant::now();
    let image = context.images.ensure_image(&*context.engine, &kind.base).await.map_err(text)?;
    phases.pull = began.elapsed();
    let network =
        start::attachment(context, kind.network, Runtime::Node).await.map_err(|failure| {
            match failure {
                StartFailure::Init(text) | StartFailure::NoCapacity(text) => text,
                StartFailure::Cancelled => "called off".to_owned(),
            }
        })?;
    let since = Instant::now();
    let mut resources = CellResources::new(cells, memory).map_err(text)?;
    let lease = start::lease_user(context).await?;
    let user = lease.user();
    let app = resources.app(cells);
    let folders = || {
        fs::create_dir_all(&app)?;
        // Independent of the umask: a service's is 0077.
        fs::set_permissions(&app, fs::Permissions::from_mode(READABLE))?;
        context.make_sockets(&resources.id, &lease)
    };
    let sockets = folders().map_err(|err| format!("no directory for a cell: {err}"))?;
    let spec = ContainerSpec {
        name: resources.container.clone(),
        image,
        labels: Labels {
            vm: context.id.clone(),
            instance: resources.id.clone(),
            version: None,
            user: lease.own_id(),
        },
        env: vec![("EPSILON_SOCKETS".to_owned(), SOCKETS.to_owned())],
        sockets: Some(sockets.path().to_owned()),
        mounts: Some(app),
        passwd: sockets.passwd().map(Path::to_owned),
        user: user.to_string(),
        memory: kind.memory,
        cpu: CPU,
        network,
        limits: context.config.limits.clone(),
    };
    resources.user = Some(lease);
    resources.note_container();
    if let Err(err) = context.engine.create(&spec).await {
        if matches!(err, EngineError::NotFound(_)) {
            context.images.invalidate(&kind.base); // it was removed without the agent: the next boot looks again
        }
        return Err(text(err));
    }
    phases.create = since.elapsed();

    let since = Instant::now();
    let output =
        AttachedOutput::open(context, &resources.container, &resources.gone).await.map_err(text)?;
    if let Err(err) = context.engine.start(&resources.container).await {
        if matches!(err, EngineError::NotFound(_)) {
            context.network.invalidate(); // as above
        }
        return Err(text(err));
    }
    let mut exit = watch(cells, &resources);
    let ready = async {
        let mut control = ControlConnection::wait(&sockets).await;
        // A start waits for this cell: it does not wait for the warm-up.
        let warm = if is_spare { control.warm().await } else { Ok(()) };
        warm.map_err(|err| Chain(&err).to_string())?;
        Ok::<_, String>((control, Unsettled::open(&sockets).await))
    };
    let limit = context.config.start_timeout;
    let (control, unsettled) = tokio::select! {
        // The ends first: after them, nothing else happens. All arms may be dropped.
        biased;
        () = resources.stop.cancelled() => return Err("the agent ends".into()),
        end = &mut exit => return Err(match end {
            Ok(exit) => format!("its process ended: {exit}"),
            Err(err) => text(err),
        }),
        ready = timeout(limit, ready) => match ready {
            Ok(ready) => ready?,
            Err(_) => {
                return Err(format!("it was not warm within {}", humantime::format_duration(limit)));
            }
        },
    };
    phases.start = since.elapsed();
    Ok(Cell { kind, resources, output, exit, control, sockets, unsettled })
}

/// Watches for the end of the cell's container from now on, also after the cell was assigned. A
/// ready cell is taken out of the pool.
fn watch(cells: &Arc<Cells>, resources: &CellResources) -> ExitWatch {
    let context = &cells.context;
    let exit =
        exit::watch_exit(context, &resources.container, exit::wait(context, &resources.container));
    let (to, from) = oneshot::channel();
    let cells = Arc::clone(cells);
    let id = resources.id.clone();
    let gone = resources.gone.clone();
    context.spawn(async move {
        tokio::select! {
            // Both arms may be dropped: the watch can be repeated, a token.
            biased;
            exit = exit => {
                drop(to.send(exit));
                cells.remove_dead(&id);
            }
            () = gone.cancelled() => {}
        }
    });
    let gone = || Err(EngineError::NotFound("the cell was removed".into()));
    from.map(move |exit| exit.unwrap_or_else(|_| gone())).boxed()
}
