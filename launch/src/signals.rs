//! The signals that ask a process to end. The first one means: in peace; the second: now.

use crate::failure::Failure;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask this process to end.
#[derive(Debug)]
pub struct Asked {
    terminate: Signal,
    interrupt: Signal,
}

impl Asked {
    /// Listens from now on. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|err| Failure::new("SIGNALS", "signals cannot be heard").because(&err))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one. Cancel-safe: a signal that nobody took is taken by the next wait.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
