//! Traffic splits: a function's calls go to more than one version. `call/version.rs` chooses the
//! version of each call; this module holds the data for that choice and reacts to failing versions.
//! A function without a split uses none of it. A split in memory and the error windows of its
//! versions are in `routes/`; `functions/split.rs` sets one, and ends one whose version fails too often.
//!
//! | file | what it is |
//! |---|---|
//! | `config` | defaults for the automatic end of a split |
//! | `metrics` | metrics per version |

pub(crate) mod config;
pub(crate) mod metrics;
