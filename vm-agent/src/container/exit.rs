//! Watches a container for the end of its process. Used by `image.rs`, by cells from their boot on,
//! and for adopted containers.

use crate::{
    context::VmContext,
    engine::{ContainerName, EngineError, Exit},
};
use futures_util::future::BoxFuture;
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// Resolves when a container's process ends.
pub(crate) type ExitWatch = BoxFuture<'static, Result<Exit, EngineError>>;

/// Waits at the engine for the end of the container. A refused request is repeated; a missing
/// container is a result.
pub(crate) fn wait(context: &Arc<VmContext>, container: &ContainerName) -> ExitWatch {
    let context = Arc::clone(context);
    let container = container.clone();
    Box::pin(async move {
        loop {
            match context.engine.wait(&container).await {
                Err(
                    EngineError::Refused(_)
                    | EngineError::Registry(_)
                    | EngineError::NotHere(_)
                    | EngineError::Shared(_),
                ) => {
                    pause(&context).await;
                }
                end @ (Ok(_) | Err(EngineError::NotFound(_) | EngineError::Down(_))) => return end,
            }
        }
    })
}

/// Keeps waiting when `answer` says that the engine is down: a container may outlive that.
pub(crate) fn watch_exit(
    context: &Arc<VmContext>,
    container: &ContainerName,
    mut answer: ExitWatch,
) -> ExitWatch {
    let context = Arc::clone(context);
    let container = container.clone();
    Box::pin(async move {
        loop {
            match answer.await {
                Err(EngineError::Down(_)) => pause(&context).await,
                end => return end,
            }
            answer = wait(&context, &container);
        }
    })
}

/// Pause between two requests to an unhealthy engine.
async fn pause(context: &VmContext) {
    sleep(context.config.reconcile_every.min(Duration::from_secs(1))).await;
}
