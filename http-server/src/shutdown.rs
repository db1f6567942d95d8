//! How listeners end, together: those that share a [`Shutdown`]. Its owner decides how long the
//! first step may last.

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The end of a listener, in two steps, and the tasks to wait for.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Stop accepting; finish what runs.
    pub close: CancellationToken,
    /// Drop all connections at once.
    pub cut: CancellationToken,
    /// Tracks the task of every connection.
    pub tasks: TaskTracker,
}
