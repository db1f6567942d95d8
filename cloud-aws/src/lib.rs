//! What Epsilon asks of AWS: registry tokens, the scale group, the instance’s own metadata.
//!
//! | module | what it asks | who calls it |
//! |---|---|---|
//! | [`ecr`] | tokens and repositories of ECR | registry |
//! | [`imds`] | who this VM is, whether it is about to go | vm-agent |
//! | [`scale_group`] | how many VMs an Auto Scaling group has, and which one goes | gateway |

pub mod ecr;
pub mod imds;
#[cfg(feature = "fake")]
pub mod moto;
pub mod scale_group;
#[cfg(feature = "fake")]
pub mod scripted;
