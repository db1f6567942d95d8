//! Shutdown signals: SIGTERM and SIGINT. The first asks for a graceful shutdown, the second ends it
//! at once.

use crate::failure::Failure;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Shutdown signals of this process.
#[derive(Debug)]
pub struct ShutdownSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl ShutdownSignals {
    /// Starts listening. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses a signal handler.
    pub fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|err| {
                Failure::new("SIGNALS", "signals cannot be received").with_cause(&err)
            })
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal. Cancel-safe: a signal that was not returned is returned by the
    /// next wait.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
