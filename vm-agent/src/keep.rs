//! How long an idle instance stays, when one is made ready before a call comes, and which goes first when memory is
//! needed. Reads only what functions did before; starts and stops nothing.
//!
//! | module | what it is | pure |
//! |---|---|---|
//! | [`histogram`] | the pauses between calls of one function | yes |
//! | [`policy`] | from pauses to times (Serverless in the Wild) | yes |
//! | [`cost`] | who goes first when memory is needed (Greedy-Dual, FaasCache) | yes |
//! | `history` | what is known of one function, over its versions; `instance/pool.rs` tells it | clock passed in |
//! | `histories` | all functions of this VM, at most so many | |
//! | `file` | `DATA/vm/keep.json`: the same across restarts | |
//! | `sweep` | the task that looks each second: pre-warms, reports, writes | |
//!
//! The pure ones are public for the replay in `benches/`, which runs the agent's own rules.

pub mod cost;
pub(crate) mod file;
pub mod histogram;
pub(crate) mod histories;
pub(crate) mod history;
pub mod policy;
pub(crate) mod sweep;
