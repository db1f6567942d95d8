//! The store: what every back end must do, what only one of them can do, and the way from one to the other.
//! PostgreSQL is a real server that the tests start.

#![allow(clippy::unwrap_used, reason = "a test panics where it stands")]

mod backup;
mod contract;
mod copy;
mod postgres;
mod sqlite;
mod support;
mod traffic;
