//! The verbs, one file each.

pub(crate) mod autoscaler;
pub(crate) mod backup;
pub(crate) mod build;
pub(crate) mod builders;
pub(crate) mod delete;
pub(crate) mod deploy;
pub(crate) mod dev;
pub(crate) mod drain;
pub(crate) mod functions;
pub(crate) mod init;
pub(crate) mod invoke;
pub(crate) mod keys;
pub(crate) mod logs;
pub(crate) mod promote;
pub(crate) mod restore;
pub(crate) mod rollback;
pub(crate) mod store;
pub(crate) mod traffic;
pub(crate) mod undrain;
pub(crate) mod up;
pub(crate) mod versions;
pub(crate) mod vms;
