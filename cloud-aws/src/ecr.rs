//! Amazon ECR: tokens, which registries accept as a password, and repositories, which ECR does not
//! create on push. Not the registry's own protocol: engine and builder speak that. Called by the
//! `registry` crate.
//!
//! `client` speaks to AWS with its SDK; a build without the feature `sdk` has `absent` in its
//! place, which refuses.

#[cfg(not(feature = "sdk"))]
mod absent;
#[cfg(feature = "sdk")]
mod client;
mod host;
mod policy;
#[cfg(feature = "sdk")]
mod token;

#[cfg(not(feature = "sdk"))]
pub use absent::Ecr;
#[cfg(feature = "sdk")]
pub use client::Ecr;
pub use host::EcrHost;
pub use policy::Retention;

use epsilon_api::redacted::Secret;
use std::error::Error;

/// The user name that belongs to every token.
pub const USER: &str = "AWS";

/// A password for all registries of a region that this machine's role may use.
pub type Token = Secret<String>;

/// Why an AWS request failed.
#[derive(Debug, thiserror::Error)]
pub enum EcrError {
    /// Credentials are missing, or lack a permission.
    #[error("AWS does not let this machine do `ecr:{action}`")]
    Denied {
        /// The missing permission, without `ecr:`.
        action: &'static str,
        /// The SDK's error.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// No credentials, no answer, or one that cannot be parsed.
    #[error("AWS did not answer `ecr:{action}`")]
    Failed {
        /// The request's action, without `ecr:`.
        action: &'static str,
        /// The SDK's error.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The program lacks AWS's SDK.
    #[error("this program was built without AWS")]
    NotBuilt,
}

impl EcrError {
    /// The hint for the operator.
    pub fn hint(&self) -> String {
        match self {
            Self::Denied { action, .. } => format!(
                "add `ecr:{action}` to the role of this machine (docs/registries.md has the minimal policy)"
            ),
            Self::Failed { .. } => {
                "check whether this machine has a role, and can reach AWS's endpoints".into()
            }
            Self::NotBuilt => {
                "use a release package, or `make build`: both have the cargo feature `aws`".into()
            }
        }
    }
}
