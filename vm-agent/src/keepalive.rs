//! Keep-alive: how long an idle instance stays, when one is prewarmed before a call, and which is
//! evicted first when memory is needed. It decides from the history of functions; it starts and
//! stops nothing.
//!
//! | module | what it is | pure |
//! |---|---|---|
//! | [`histogram`] | the pauses between calls of one function | yes |
//! | [`policy`] | from pauses to keep-alive times (Serverless in the Wild) | yes |
//! | [`cost`] | the eviction order (Greedy-Dual, FaasCache) | yes |
//! | `history` | the history of one function, of all its versions; fed by `instance/pool.rs` | clock passed in |
//! | `histories` | the histories of this VM, a bounded number | |
//! | `file` | `DATA/vm/keep.json`: the histories across restarts | |
//! | `sweep` | the task that runs each second: prewarms, reports, writes | |
//!
//! The pure ones are public for the replay in `benches/`, which runs the agent's own policy.

pub mod cost;
pub(crate) mod file;
pub mod histogram;
pub(crate) mod histories;
pub(crate) mod history;
pub mod policy;
pub(crate) mod sweep;
