//! One VM's agent: it owns the VM's container engine, runs instances of functions as hardened containers,
//! and sends calls to them. The gateway sees it as `epsilon_api::vm::Vm`; in `epsilon up` both live in
//! one process.
//!
//! # Life of a call
//!
//! ```text
//! gateway ─▶ vm ─▶ call ─▶ call/lease ─▶ call/relay ═▶ calls.sock ═▶ wrapper ─▶ user code
//!            which  the     a place in     streams to                   │
//!            pool   phases  an instance    the instance                 │
//!                              │ none free: wait, perhaps start one     │
//!                              └─▶ instance/pool ─▶ runner ─▶ start ─▶ engine
//! gateway ◀══ call/reply ◀══════════════════════════════════════════════┘
//!             the lease rides in the body and ends with its last byte
//! ```
//!
//! 1. [`vm`](mod@vm): finds the version's pool; a draining VM says no.
//! 2. `call/lease.rs`: a free place in the instance used last, else a bounded wait; `instance/pool.rs` starts as
//!    many instances as those who wait need, within the limits of function, version and VM.
//! 3. `call/relay.rs`: sends over a pooled connection, with the deadline that follows from `timeout`.
//! 4. `call/reply.rs`: turns the head into an answer and puts the lease into the body.
//!
//! A caller who leaves, a deadline that passes, a process that dies: see `call/settle.rs`, the table in
//! `instance/state.rs`, and `instance/runner.rs`.
//!
//! # Where else to look
//!
//! | module | what it owns |
//! |---|---|
//! | [`app`] | start and end of the agent |
//! | [`config`] | every setting, with its default and the reason for it |
//! | `instance/` | one instance: state table, runner, start; the pool of a version; the VM's memory |
//! | `cell/` | booted containers that wait for code, and how one becomes an instance |
//! | [`engine`] | containers in our words; Docker is named nowhere else |
//! | [`keep`] | how long idle instances stay, who goes first, who is made ready before a call |
//! | `reconcile` | containers against what is known: at start, and on a timer |
//! | `layers/` | code layers unpacked on this machine, for cells |
//! | `logs/` | what containers write: bounded queue, files within a limit, followers |
//! | `serve` | the listener where gateways of a fleet bring calls |
//! | [`member`] | the VM's belonging to a fleet: joins, reports, drains, leaves |
//! | `drain` | whether new calls are taken, and why not |
//! | `network` | the bridge of functions that may reach the outside |
//! | `registry` | pulls: few at once, with the registry's login |

pub mod app;
mod call;
mod cell;
pub mod config;
mod drain;
pub mod engine;
pub mod error;
mod images;
mod instance;
pub mod keep;
pub mod labels;
mod layers;
mod logs;
pub mod member;
mod metrics;
mod network;
mod reconcile;
mod registry;
mod serve;
mod shutdown;
mod vm;
