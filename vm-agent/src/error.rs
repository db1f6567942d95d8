//! Why an agent cannot start. Written for the operator; printed with `Chain`.

use crate::engine::EngineError;
use epsilon_api::ids::InvalidId;
use epsilon_wire::tls::TlsError;
use std::{io, net::SocketAddr, path::PathBuf};

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Docker is not there, or not for us.
    #[error(
        "the container engine at `{socket}` does not answer; start Docker, or name its socket in \
         `vm_agent.engine_socket`"
    )]
    Engine {
        /// Where it was looked for.
        socket: PathBuf,
        /// What happened there.
        #[source]
        source: EngineError,
    },
    /// The agent's own folder.
    #[error("`{path}` cannot be used")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Two agents would remove each other's containers.
    #[error("`{path}` is in use by another agent")]
    InUse {
        /// The lock.
        path: PathBuf,
    },
    /// The file with this VM's id was damaged.
    #[error("`{path}` does not hold a VM id; remove it to get a new one")]
    Id {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: InvalidId,
    },
    /// The address of one of its own listeners.
    #[error("`vm_agent.{key}`: cannot listen on {address}")]
    Listen {
        /// Which setting.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The token's file, or what it keeps of its fleet; the source says which.
    #[error("this VM cannot join its fleet")]
    Fleet {
        /// The token's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The certificate's files.
    #[error("the settings `vm_agent.tls_…` cannot be used")]
    Tls(#[from] TlsError),
    /// Another part of the process has taken our names.
    #[error("the agent's metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
}
