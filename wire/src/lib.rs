//! How the parts of a fleet talk to each other: kept HTTP/1 connections, and (being built here) TLS from PEM files and signed passes.
//!
//! What they say is `epsilon_api::fleet`.

pub mod connection;
