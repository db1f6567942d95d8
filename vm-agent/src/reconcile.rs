//! Compares the engine's containers that have our label with the instances that are known. At start
//! ([`adopt`]): adopts healthy containers, removes the rest. On a timer ([`run`]): removes unknown
//! containers, keeps the network safe, starts what `minInstances` needs. So the agent recovers from
//! a crash of its own or of the engine without any state on disk.

use crate::cell::resources::CellResources;
use crate::container::connections::Upstream;
use crate::container::control;
use crate::container::output::AttachedOutput;
use crate::container::sockets::SocketDir;
use crate::container::unsettled::Unsettled;
use crate::engine::{ContainerInfo, EngineError};
use crate::instance::runner::Runner;
use crate::instance::runner::assign;
use crate::instance::{Instance, StartProgress};
use crate::labels;
use crate::labels::Labels;
use crate::vm::LocalVm;
use epsilon_api::{
    chain::Chain,
    function::{Isolation, Runtime, Version},
    ids::InstanceId,
};
use futures_util::{FutureExt, StreamExt, stream};
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Removals at once.
const REMOVALS: usize = 4;
/// Containers probed for adoption at once; one that hangs answers late.
const ADOPTIONS: usize = 16;
/// Timeout of the health request to a found instance.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// Adopts the containers of an earlier run of this agent. Called once, before the first call.
pub(crate) async fn adopt(vm: &Arc<LocalVm>) -> Result<(), EngineError> {
    let found = vm.engine.list(&vm.id).await?;
    let probed: Vec<Option<ContainerInfo>> = stream::iter(found)
        .map(|container| async move { (!adopt_one(vm, &container).await).then_some(container) })
        .buffer_unordered(ADOPTIONS)
        .collect()
        .await;
    let leftovers: Vec<ContainerInfo> = probed.iter().flatten().cloned().collect();
    let adopted = probed.len() - leftovers.len();
    let removed = leftovers.len();
    remove(vm, leftovers).await;
    remove_orphaned_socket_dirs(vm);
    vm.cells.sweep(|id| vm.known.lock().contains(id));
    if adopted + removed > 0 {
        tracing::info!(
            adopted,
            removed,
            "Instances of an earlier run were adopted, other containers removed."
        );
    }
    Ok(())
}

async fn adopt_one(vm: &Arc<LocalVm>, found: &ContainerInfo) -> bool {
    // The earlier run may have frozen it, and a frozen process neither answers nor dies.
    let freezer =
        if found.is_running { vm.engine.freezer(&found.name).await.ok().flatten() } else { None };
    if let Some(freezer) = &freezer {
        drop(freezer.thaw());
    }
    let Some(labels) = Labels::from_map(&found.labels).filter(|_| found.is_running) else {
        return false;
    };
    let Labels { instance: id, version, user, vm: _ } = labels;
    let (version, cell) = match version {
        Some(version) => (version, None),
        None => match assigned_version(vm, &id) {
            Some((version, cell)) => (version, Some(cell)),
            None => return false,
        },
    };
    let idle = vm.config.connection_idle;
    let Ok(instance) = Instance::new(id.clone(), version, idle, &vm.closed) else { return false };
    instance.note_progress(StartProgress::Process);
    if let Some(cell) = cell {
        instance.assign_cell(cell);
    }
    if *instance.container() != found.name {
        return false;
    }
    // `runtime: container` cannot report whether calls still run in it.
    if instance.version.spec.runtime != Runtime::Node {
        return false;
    }
    // Whether it has served its one call is unknown.
    if instance.version.spec.isolation == Isolation::Call {
        return false;
    }
    let Ok(folder) = SocketDir::open(&vm.sockets_dir(&id)) else { return false };
    if let Some(freezer) = freezer {
        instance.set_freezer(Some(freezer));
    }
    match timeout(HEALTH_TIMEOUT, control::health(&folder)).await {
        Ok(Ok(health)) if health.state == "ready" && health.active == 0 => {}
        _ => return false,
    }
    match AttachedOutput::open(&vm.context, instance.container(), &instance.gone).await {
        Ok(output) => output.belongs_to(&instance.version, instance.id()),
        Err(_) => return false,
    }
    folder.close(); // the earlier run may have ended right before
    let unsettled = Unsettled::open(&folder).await;
    instance.connections.set_upstream(Upstream::Sockets(folder, unsettled));
    instance.set_user(vm.users.adopt(user));
    instance.add_memory(vm.budget.adopt(instance.version.spec.memory));
    let pool = vm.pool(&instance.version);
    let instance = Arc::new(instance);
    vm.known.lock().insert(id);
    let key = pool.adopt(Arc::clone(&instance));
    vm.spawn(
        Runner {
            context: Arc::clone(&vm.context),
            cells: Arc::clone(&vm.cells),
            pool,
            key,
            instance,
        }
        .adopt(),
    );
    true
}

/// The version of an assigned cell, if its layers are still there and mounted. An unassigned cell
/// is cheaper to boot again than to check.
fn assigned_version(vm: &Arc<LocalVm>, id: &InstanceId) -> Option<(Arc<Version>, CellResources)> {
    let version = assign::read(&vm.cells, id).filter(|_| vm.cells.is_mounted(id))?;
    let code = vm.layers.lease_present(&version)?;
    let cell = CellResources::existing(&vm.cells, id.clone()).ok()?;
    *cell.code.lock() = Some(code);
    vm.cells.note_version(&version);
    Some((Arc::new(version), cell))
}

/// Runs until the agent shuts down.
pub(crate) async fn run(vm: Arc<LocalVm>) {
    let mut timer = interval(vm.config.reconcile_every);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer.tick().await; // the first tick is immediate, and `adopt` just ran
    loop {
        tokio::select! {
            // The shutdown first. Both arms may be dropped: a token, a timer.
            biased;
            () = vm.closed.cancelled() => return,
            _ = timer.tick() => {}
        }
        tokio::select! {
            biased;
            () = vm.closed.cancelled() => return,
            // Every step of it may be cut, and even panic: the next round does it again.
            swept = AssertUnwindSafe(sweep(&vm)).catch_unwind() => if swept.is_err() {
                tracing::error!("Reconciliation with the container engine panicked (a bug); the next round tries again.");
            }
        }
    }
}

async fn sweep(vm: &Arc<LocalVm>) {
    // Known before listed: an instance that starts meanwhile is in neither or in both.
    let before = vm.known.lock().clone();
    let found = vm.engine.list(&vm.id).await;
    let is_changed = vm.set_engine_down(found.is_err());
    let found = match found {
        Ok(found) => found,
        Err(err) => {
            if is_changed {
                tracing::error!(error = %Chain(&err), "Container engine does not answer.");
            }
            return;
        }
    };
    if is_changed {
        tracing::info!("Container engine answers again.");
    }
    if let Err(err) = vm.network.ensure(&vm.engine).await {
        tracing::warn!(error = %Chain(&err), "Network of functions could not be prepared; trying again.");
    }
    let unknown = {
        let now = vm.known.lock();
        let is_known = |id: &InstanceId| before.contains(id) || now.contains(id);
        found
            .into_iter()
            .filter(|container| {
                let id = container.labels.get(labels::INSTANCE);
                let id = id.and_then(|id| InstanceId::parse(id).ok());
                !id.is_some_and(|id| is_known(&id) || vm.layers.reads(&id))
            })
            .collect::<Vec<_>>()
    };
    if !unknown.is_empty() {
        tracing::warn!(count = unknown.len(), "Removing containers that belong to no instance.");
        remove(vm, unknown).await;
    }
    vm.cells.sweep(|id| vm.known.lock().contains(id));
    for pool in vm.pools() {
        pool.start_what_is_needed();
    }
}

pub(crate) async fn remove(vm: &LocalVm, containers: Vec<ContainerInfo>) {
    stream::iter(containers)
        .for_each_concurrent(REMOVALS, |container| async move {
            if let Err(err) = vm.engine.remove(&container.name).await {
                tracing::warn!(container = %container.name, error = %Chain(&err), "Container could not be removed; reconciliation will remove it.");
            }
        })
        .await;
}

/// Removes socket directories of instances that are gone.
pub(crate) fn remove_orphaned_socket_dirs(vm: &LocalVm) {
    for entry in std::fs::read_dir(vm.sockets_root()).into_iter().flatten().flatten() {
        let id = entry.file_name().to_str().and_then(|name| InstanceId::parse(name).ok());
        if let Some(id) = id.filter(|id| !vm.known.lock().contains(id)) {
            vm.remove_sockets(&id);
        }
    }
}
