//! The AWS APIs that Epsilon uses: registry tokens, the scale group, the instance’s own metadata.
//!
//! | module | what it covers | who calls it |
//! |---|---|---|
//! | [`ecr`] | tokens and repositories of ECR | registry |
//! | [`imds`] | the VM's instance id, and notices of its end | vm-agent |
//! | `scale_group` | size and instances of an Auto Scaling group | gateway |
//!
//! What needs AWS's SDK, a sixth of the time that a build takes, is behind the feature `sdk`: all of
//! `scale_group`, and the requests of [`ecr`]. The metadata service needs two plain requests.

pub mod ecr;
pub mod imds;
#[cfg(feature = "fake")]
pub mod moto;
#[cfg(feature = "sdk")]
pub mod scale_group;
#[cfg(feature = "fake")]
pub mod scripted;
