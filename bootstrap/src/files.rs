//! The process's limit on open files.

use epsilon_api::chain::Chain;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use tracing::{info, warn};

/// Raises the soft limit to the hard one. Each call takes two sockets; the usual soft limit of
/// 1,024 files is for programs that use `select()`.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    match raised.map_err(io::Error::from) {
        Ok(()) => {
            info!(files = ?limit.maximum, before = ?limit.current, "Limit on open files raised.");
        }
        Err(err) => {
            warn!(error = %Chain(&err), files = ?limit.current, "Limit on open files cannot be raised; using the soft limit.");
        }
    }
}
