//! The harness of the end-to-end tests: starts the real `epsilon` binary with the real Docker
//! engine and uses it like a user: folders in, HTTP out, processes killed.
//!
//! Not a test itself and not used by the program. The tests in `tests/` and the measurements in
//! `benches/` call it. Everything here panics with a useful text instead of returning errors: a
//! harness that cannot do its work is a failed test.
//!
//! | module | what it gives |
//! |---|---|
//! | [`program`] | one process of the platform with its folder, and the guard that removes it |
//! | [`up`] | a running `epsilon up` of its own, removed with all its resources in any case |
//! | [`fleet`] | gateways, a builder and agents as processes of their own |
//! | [`project`] | a project's folder from a few lines, and its archive |
//! | [`deploy`] | a deployment and its events |
//! | [`http`] | one call over one connection: whole, streamed, or cut |
//! | [`fleet-link`] | bytes on a socket, for what no HTTP client would send |
//! | [`websocket`] | as much of RFC 6455 as an echo needs |
//! | [`load`] | callers without pauses that count their results |
//! | [`dockerd`] | an engine of its own for one VM |
//! | [`network`] | namespaces with links that can be cut, slowed and healed |
//! | [`cli`] | the command line, with its exit code |
//! | [`engine`] | the state according to Docker |
//! | [`wait`] | the only way to wait: for a condition, with a limit |

#![allow(clippy::unwrap_used, reason = "a harness fails by panicking, in the test that uses it")]

pub mod cli;
pub mod deploy;
pub mod dockerd;
pub mod engine;
pub mod fleet;
mod guard;
pub mod http;
pub mod load;
pub mod network;
pub mod program;
pub mod project;
pub mod up;
pub mod wait;
pub mod websocket;
pub mod wire;
