//! Why a change of what serves was not made. `control/error.rs` gives it a status and a code.

use crate::traffic::config::RULE;
use epsilon_api::{error::VmError, ids::VersionNumber};
use epsilon_store::StoreError;
use tokio::task::JoinError;

/// Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    /// The store refuses or fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A version that should get calls cannot be started.
    #[error("version {number} is not ready")]
    NotReady {
        number: VersionNumber,
        #[source]
        cause: VmError,
    },
    /// The requested terms of a split cannot judge a version.
    #[error("the window of an abort {RULE}")]
    AbortRule,
    #[error("a bug ended the change; the panic is in the log above")]
    Panicked(#[source] JoinError),
}
