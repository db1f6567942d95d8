//! The whole command, as people and scripts use it: the real binary against a scripted control API.
//! Its output is in golden files under `snapshots/`; rewrite them with `INSTA_UPDATE=always` and
//! read the diff.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod backup;
mod deploy;
mod errors;
mod init;
mod invoke;
mod listings;
mod logs;
mod store;
mod support;
mod terminal;
mod tls;
mod traffic;
