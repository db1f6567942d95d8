//! What a registry wants before it gives or takes an image. Agents pull and builders push, each in its own
//! way (the engine's, and the OCI protocol's); who they are for a registry is decided here, once for both.
//!
//! | module | what it owns |
//! |---|---|
//! | `host` | which registry an image's name leads to |
//! | `access` | the login for a host, and one more try with a fresh one |
//! | `settings` | what an operator writes, checked |
//! | `docker_config` | logins in a `config.json`, as `docker login` leaves them |
//! | `trouble` | why there was no image, and what to do |

mod access;
#[cfg(feature = "fake")]
pub mod debian;
mod docker_config;
mod host;
mod settings;
mod trouble;

pub use access::{Access, AccessError, Failed, Login};
pub use epsilon_cloud_aws::ecr::{Ecr, EcrHost, Retention};
pub use host::Host;
pub use settings::{Invalid, Written};
pub use trouble::Trouble;
