//! The VM agent: owns one VM's container engine, runs instances of functions as hardened containers
//! and sends calls to them. The gateway uses it through `epsilon_api::vm::Vm`; in `epsilon up` both
//! run in one process.
//!
//! # Life of a call
//!
//! ```text
//! gateway ─▶ service ─▶ call ─▶ instance/lease ─▶ call/relay ═▶ calls.sock ═▶ wrapper ─▶ user code
//!            trait     the     a slot in          streams to                   │
//!            `Vm`      phases  an instance        the instance                 │
//!                                 │ none free: wait, perhaps start one         │
//!                                 └─▶ instance/pool ─▶ runner ─▶ start ─▶ engine
//! gateway ◀══ call/reply ◀═════════════════════════════════════════════════════┘
//!             the body carries the lease, which ends with the last byte
//! ```
//!
//! 1. [`vm`](mod@vm): finds the version's pool; a draining VM refuses the call.
//! 2. `instance/lease.rs`: takes a free slot in the instance used last, else waits for a bounded
//!    time; `instance/pool.rs` starts as many instances as the waiting calls need, within the
//!    limits of function, version and VM.
//! 3. `call/relay.rs`: sends the request over a pooled connection, with the deadline that follows
//!    from `timeout`.
//! 4. `call/reply.rs`: turns the head of the answer into a response and puts the lease into its
//!    body.
//!
//! For a caller who disconnects, a deadline that passes and a process that dies, see
//! `instance/lease/abandoned.rs`, the transition table in `instance/state.rs`, and
//! `instance/runner.rs`.
//!
//! # Where else to look
//!
//! | module | what it owns |
//! |---|---|
//! | [`app`] | start and shutdown of the agent |
//! | [`config`] | every setting, with its default and the reason for it |
//! | `instance/` | one instance: state table, runner, start; the pool of a version |
//! | `container/` | what cells and instances have in common: sockets, control, output, exit, memory |
//! | `cell/` | booted, unassigned containers, and how one becomes an instance |
//! | [`engine`] | the container engine as a trait; only `engine/docker.rs` names Docker |
//! | [`keepalive`] | keep-alive: how long idle instances stay, which is evicted first, which is prewarmed |
//! | `reconcile` | compares containers with known instances: at start, and on a timer |
//! | `layers/` | code layers unpacked on this machine, for cells |
//! | `logs/` | container output: bounded queue, size-limited files, followers |
//! | `serve` | the listener on which gateways of a fleet send calls |
//! | [`member`] | the VM's membership in a fleet: registers, reports, drains, deregisters |
//! | `drain` | whether new calls are accepted, and why not |
//! | `network` | the bridge network of functions with egress |
//! | `registry` | image pulls: a few at once, with the registry's credentials |

pub mod app;
mod call;
mod cell;
pub mod config;
mod container;
mod context;
mod drain;
pub mod engine;
pub mod error;
mod images;
mod instance;
pub mod keepalive;
pub mod labels;
mod layers;
mod logs;
pub mod member;
mod metrics;
mod moment;
mod network;
mod reconcile;
mod registry;
mod serve;
mod service;
mod shutdown;
mod vm;
