//! Watches a container for the end of its process. Used by `image.rs`, by cells from their boot on,
//! and for adopted containers.

use crate::{
    engine::{ContainerName, EngineError, Exit},
    vm::LocalVm,
};
use futures_util::future::BoxFuture;
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// Resolves when a container's process ends.
pub(crate) type ExitWatch = BoxFuture<'static, Result<Exit, EngineError>>;

/// Waits at the engine for the end of the container. A refused request is repeated; a missing
/// container is a result.
pub(crate) fn wait(vm: &Arc<LocalVm>, container: &ContainerName) -> ExitWatch {
    let vm = Arc::clone(vm);
    let container = container.clone();
    Box::pin(async move {
        loop {
            match vm.engine.wait(&container).await {
                Err(
                    EngineError::Refused(_)
                    | EngineError::Registry(_)
                    | EngineError::NotHere(_)
                    | EngineError::Shared(_),
                ) => {
                    pause(&vm).await;
                }
                end @ (Ok(_) | Err(EngineError::NotFound(_) | EngineError::Down(_))) => return end,
            }
        }
    })
}

/// Keeps waiting when `answer` says that the engine is down: a container may outlive that.
pub(crate) fn watch_exit(
    vm: &Arc<LocalVm>,
    container: &ContainerName,
    mut answer: ExitWatch,
) -> ExitWatch {
    let vm = Arc::clone(vm);
    let container = container.clone();
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

/// Pause between two requests to an unhealthy engine.
async fn pause(vm: &LocalVm) {
    sleep(vm.config.reconcile_every.min(Duration::from_secs(1))).await;
}
