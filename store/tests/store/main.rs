//! The store: the contract of every back end, what is special to each, and copying between them.
//! PostgreSQL is a real server that the tests start.

#![allow(clippy::unwrap_used, reason = "a test panics where it stands")]

mod backup;
mod contract;
mod copy;
mod postgres;
mod sqlite;
mod support;
mod traffic;
