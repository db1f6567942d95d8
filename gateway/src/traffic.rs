//! Splits at work: a function's calls go to more than one version. `call/split.rs` chooses the version of each call; here
//! is what it chooses from, and what happens around it. A function without a split has nothing of all this.
//!
//! | file | what it is |
//! |---|---|
//! | `config` | when a split ends by itself, unless its maker says otherwise |
//! | `split` | one split in memory: its versions, and whose turn it is |
//! | `tally` | the calls of one of its versions, by how they ended |
//! | `abort` | ends a split whose version fails too often |
//! | `ready` | instances of a version before calls go there |
//! | `metrics` | series of its versions |

pub(crate) mod abort;
pub(crate) mod config;
pub(crate) mod metrics;
pub(crate) mod ready;
pub(crate) mod split;
pub(crate) mod tally;
