//! Who this machine is for one registry.

use epsilon_api::redacted::Secret;

/// A user of a registry, with the password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user's name.
    pub user: String,
    /// The password or token.
    pub password: Secret<String>,
}
