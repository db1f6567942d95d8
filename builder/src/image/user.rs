//! The user that functions run as.

/// The user of functions; a number, because a base image need not know its name.
pub(crate) const USER: u32 = 65532;
