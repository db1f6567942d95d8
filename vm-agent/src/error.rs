//! Why an agent cannot start. For the operator; printed with `Chain`.

use crate::engine::EngineError;
use epsilon_api::ids::InvalidId;
use epsilon_fleet_link::tls::TlsError;
use std::{io, net::SocketAddr, path::PathBuf};

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The engine does not answer, or refuses access.
    #[error(
        "the container engine at `{socket}` does not answer; start Docker, or name its socket in \
         `vm_agent.engine_socket`"
    )]
    Engine {
        /// The engine's socket.
        socket: PathBuf,
        /// The engine's error.
        #[source]
        source: EngineError,
    },
    /// A directory or file of the agent cannot be used.
    #[error("`{path}` cannot be used")]
    Folder {
        /// The path.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Another agent uses the directory: two would remove each other's containers.
    #[error("`{path}` is in use by another agent")]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// The file with this VM's id is damaged.
    #[error("`{path}` does not hold a VM id; remove it to get a new one")]
    Id {
        /// The file.
        path: PathBuf,
        /// Why it is not an id.
        #[source]
        source: InvalidId,
    },
    /// The address of a listener cannot be bound.
    #[error("`vm_agent.{key}`: cannot listen on {address}")]
    Listen {
        /// The setting, without its section.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The token's file, or the stored credentials, cannot be used; the source says which.
    #[error("this VM cannot join its fleet")]
    Fleet {
        /// The token's file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The certificate's files cannot be used.
    #[error("the settings `vm_agent.tls_…` cannot be used")]
    Tls(#[from] TlsError),
    /// Another part of the process registered the same metrics.
    #[error("the agent's metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
}
