//! Credentials and errors of image registries. Agents pull and builders push, each in its own way
//! (by the engine, and by the OCI protocol); the credentials for a registry are determined here,
//! for both.
//!
//! | module | what it owns |
//! |---|---|
//! | `host` | the registry of an image's name |
//! | `access` | the credentials for a host, and one retry with fresh ones |
//! | `settings` | the operator's settings, checked |
//! | `docker_config` | credentials in a `config.json`, as `docker login` writes it |
//! | `failure` | why a registry provided no image, and what to do |

mod access;
#[cfg(feature = "fake")]
pub mod debian;
mod docker_config;
mod failure;
mod host;
pub(crate) mod login;
mod settings;
pub(crate) mod sources;

pub use access::{Access, AccessError, Failed};
pub use epsilon_cloud_aws::ecr::{Ecr, EcrHost, Retention};
pub use failure::RegistryFailure;
pub use host::Host;
pub use login::Login;
pub use settings::{Invalid, RegistrySettings};
