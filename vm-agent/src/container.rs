//! A container that the agent drives, whatever it is: a cell that waits for code, or an instance
//! that serves calls. Its sockets and connections, its control protocol, its output, its exit, the
//! user that it runs as, its memory, what is mounted into it, and how a start ends or fails.
//!
//! Knows neither cells nor instances: `cell/` and `instance/` are on top of it.

pub(crate) mod budget;
pub(crate) mod connections;
pub(crate) mod control;
pub(crate) mod exit;
pub(crate) mod failure;
pub(crate) mod mounts;
pub(crate) mod output;
pub(crate) mod sockets;
pub(crate) mod start;
pub(crate) mod unsettled;
pub(crate) mod user_ids;
