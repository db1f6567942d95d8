//! Turns a ready cell into an instance: mounts the version's layers, has the code loaded, and
//! meanwhile sets its limits and records the version. Until all of that worked the cell owns
//! itself: a cancelled or failed start drops it, which removes it.
//!
//! No engine request stands between a call and its answer: limits that differ are set while the
//! code loads, and may be set a moment after it.

use crate::cell::boot::CPU;
use crate::cell::resources::CellResources;
use crate::cell::{Cell, Cells};
use crate::container::connections::Upstream;
use crate::container::control::Init;
use crate::container::failure::{LoadFailure, StartFailure};
use crate::container::start::Started;
use crate::container::{exit, start};
use crate::context::VmContext;
use crate::engine::EngineError;
use crate::instance::Instance;
use crate::layers::Code;
use epsilon_api::{chain::Chain, function::Version, ids::InstanceId, vm::StartPhases};
use std::{fs, io, path::Path, sync::Arc};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};

/// The version that a cell serves, as JSON in the cell's directory. Without it, the cell serves
/// nothing.
const RECORD: &str = "version.json";

/// Why a cell did not become an instance.
#[derive(Debug)]
pub(crate) enum NotAssigned {
    /// The start failed as it would have failed in any container.
    Start(StartFailure),
    /// Cells do not work here; the image path may.
    Cells(String),
}

/// `phases`: the time for the cell and the code so far; `since`: when taking the cell began.
pub(crate) async fn assign(
    cells: &Arc<Cells>,
    instance: &Instance,
    cell: Cell,
    code: Code,
    mut phases: StartPhases,
    since: Instant,
) -> Result<Started, NotAssigned> {
    let Cell { kind, resources, output, exit, mut control, sockets, unsettled } = cell;
    let version = &instance.version;
    output.belongs_to(version, &resources.id);
    mount(cells, &resources, &code)?;
    *resources.code.lock() = Some(code);
    // Limits are set and the record is written while the code loads.
    let limits = ((version.spec.memory, version.spec.cpu) != (kind.memory, CPU))
        .then(|| update(&cells.context, &resources, version));
    let record = spawn_blocking({
        let folder = cells.folder(&resources.id);
        let version = Arc::clone(version);
        move || write(&folder, &version)
    });
    let loading = Instant::now();
    phases.cell = loading - since;
    let load = async {
        let init = Init::new(version, &resources.id, cells.context.engine.code());
        control.init(&init).await?;
        sockets.close();
        Ok(Upstream::Sockets(sockets, unsettled))
    };
    let (upstream, exit) = match start::wait_until_loaded(&cells.context, exit, output, load).await
    {
        Ok(settled) => settled,
        Err(LoadFailure::NotMounted) => {
            cells.note_mount_visible(false);
            return Err(NotAssigned::Cells(
                "a container does not see what is mounted for it".into(),
            ));
        }
        Err(LoadFailure::Start(failure) | LoadFailure::Silent(failure)) => {
            return Err(NotAssigned::Start(failure));
        }
    };
    phases.init = loading.elapsed();
    cells.note_mount_visible(true);
    if let Ok(Err(err)) = record.await {
        // It serves all the same; only a restarted agent will not know its version, and removes it.
        tracing::warn!(cell = %resources.id, error = %Chain(&err), "Version of a cell could not be recorded; a restarted agent will remove the instance.");
    }
    instance.connections.set_upstream(upstream);
    instance.assign_cell(resources.hand_over_removal());
    Ok(Started {
        phases,
        exit: exit::watch_exit(&cells.context, instance.container(), exit),
        limits,
    })
}

fn mount(cells: &Cells, resources: &CellResources, code: &Code) -> Result<(), NotAssigned> {
    let Some(mounts) = cells.mounts() else {
        return Err(NotAssigned::Cells("cells were turned off".into()));
    };
    mounts
        .overlay(code.folders(), &resources.app(cells))
        .map_err(|err| NotAssigned::Cells(format!("its layers could not be mounted: {err}")))
}

fn update(
    context: &Arc<VmContext>,
    resources: &CellResources,
    version: &Version,
) -> JoinHandle<Result<(), EngineError>> {
    let task = Arc::clone(context);
    let container = resources.container.clone();
    let (memory, cpu) = (version.spec.memory, version.spec.cpu);
    context.spawn(async move { task.engine.update(&container, memory, cpu).await })
}

/// Writes the record atomically. It is not flushed: it is needed only while the container runs,
/// which does not outlive the machine.
fn write(folder: &Path, version: &Version) -> io::Result<()> {
    let draft = folder.join("version.new");
    fs::write(&draft, serde_json::to_vec(version)?)?;
    fs::rename(draft, folder.join(RECORD))
}

/// The version that a cell of an earlier run served, if any.
pub(crate) fn read(cells: &Cells, id: &InstanceId) -> Option<Version> {
    let bytes = fs::read(cells.folder(id).join(RECORD)).ok()?;
    serde_json::from_slice(&bytes).ok()
}
