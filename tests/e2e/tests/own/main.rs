//! Tests with a platform, or a machine, of their own each: what ends, restarts, starves or replaces
//! the platform. They do not disturb each other, so two run at a time, in one program that is linked
//! once.
//!
//! Tests that need the whole machine are programs of their own: `under_attack` and
//! `with_engine_restarted`.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod aws;
mod backup;
mod disk_full;
mod readme;
mod registry;
mod restarts;
mod small_machine;
mod specification;
mod tls;
