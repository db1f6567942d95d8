//! The end of a container's process, watched from its start on. Asked by `image.rs`, by cells from their boot on, and for
//! what was found running.

use crate::{
    engine::{ContainerName, EngineError, Exit},
    vm::LocalVm,
};
use futures_util::future::BoxFuture;
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// The end of a container's process.
pub(crate) type ExitWatch = BoxFuture<'static, Result<Exit, EngineError>>;

/// Asks the engine for the end of the container. What it refuses is asked again; that it is away is an answer.
pub(crate) fn wait(vm: &Arc<LocalVm>, container: &ContainerName) -> ExitWatch {
    let (vm, container) = (Arc::clone(vm), container.clone());
    Box::pin(async move {
        loop {
            match vm.engine.wait(&container).await {
                Err(
                    EngineError::Refused(_)
                    | EngineError::Registry(_)
                    | EngineError::NotHere(_)
                    | EngineError::Same(_),
                ) => {
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
