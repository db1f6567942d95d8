//! -

use epsilon_api::redacted::Secret;
use std::path::PathBuf;

/// The operator's own credentials for one registry.
#[derive(Debug)]
pub(crate) enum OwnCredentials {
    Password { user: String, password: Secret<String> },
    File { user: String, path: PathBuf },
}

impl OwnCredentials {
    pub(crate) fn user(&self) -> &str {
        match self {
            Self::Password { user, .. } | Self::File { user, .. } => user,
        }
    }
}

impl OwnCredentials {
    pub(crate) fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::Password { .. } => None,
            Self::File { path, .. } => Some(path),
        }
    }
}
