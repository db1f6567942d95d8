//! Blocking work (disks, digests) on threads of its own, away from those that serve connections.
//! The builder's only way to do so; a panic in such work becomes an error instead of ending its
//! caller.

use crate::error;
use epsilon_api::build::BuildError;

/// Runs `work` on a blocking thread. `doing` completes "while …".
pub(crate) async fn run<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|gone| Err(error::broken(doing, &gone)))
}
