//! The shutdown of an agent: removes everything that it made on this machine, instances first, then
//! what they used. The VM may never start again, so one thing that stays (a container that the
//! engine does not remove) must not keep the rest.
//!
//! Called by `app.rs`, when calls have ended and every instance was ordered to stop.

use crate::{reconcile, vm::LocalVm};
use epsilon_api::chain::Chain;
use std::{pin::pin, time::Duration};
use tokio::time::{Instant, timeout};

/// All instances together may take this many times `remove_timeout`, as long as some of them end
/// within each: engines remove one container after the other, and a VM may have hundreds.
const ROUNDS: u32 = 4;

pub(crate) async fn remove_everything(vm: &LocalVm) {
    let limit = vm.config.remove_timeout;
    instances_end(vm, limit).await;
    let has_containers = timeout(limit, remove_containers(vm)).await.unwrap_or_else(|_| {
        tracing::error!(
            "Engine did not remove all containers in time; the agent's next start will remove them."
        );
        true
    });
    vm.cells.sweep(|_| false);
    vm.cells.close();
    match timeout(limit, vm.network.remove(&*vm.engine, has_containers)).await {
        Ok(Ok(())) => {}
        Ok(Err(err)) => {
            tracing::error!(error = %Chain(&err), "Network of functions could not be removed; the agent's next start takes it over.");
        }
        Err(_) => tracing::error!("Engine did not remove the network of functions in time."),
    }
}

/// Waits until the tasks of all instances have removed them.
async fn instances_end(vm: &LocalVm, limit: Duration) {
    let give_up = Instant::now() + limit * ROUNDS;
    let mut ended = pin!(vm.tasks.wait());
    loop {
        let before = vm.known.lock().len();
        if timeout(limit, ended.as_mut()).await.is_ok() {
            return;
        }
        let left = vm.known.lock().len();
        if left >= before || Instant::now() >= give_up {
            tracing::error!(
                instances = left,
                "Instances did not end in time; removing their containers."
            );
            return;
        }
        tracing::info!(instances = left, "Instances are still being removed.");
    }
}

/// Removes whatever is left. Returns whether a container is left after that.
async fn remove_containers(vm: &LocalVm) -> bool {
    match vm.engine.list(&vm.id).await {
        Ok(left) => reconcile::remove(vm, left).await,
        Err(err) => {
            tracing::error!(error = %Chain(&err), "Containers could not be listed; they stay until the agent's next start.");
            return true;
        }
    }
    reconcile::remove_orphaned_socket_dirs(vm);
    vm.tasks.wait().await;
    vm.engine.list(&vm.id).await.map_or(true, |left| !left.is_empty())
}
