//! The whole gateway in one process: real listeners on port 0, a real store, a scripted VM and a
//! scripted builder. One binary, so that it links once.

#![allow(
    clippy::unwrap_used,
    clippy::large_futures,
    reason = "a test panics where it stands, and its stack is its own"
)]

#[path = "support/agent.rs"]
mod agent;
#[path = "support/fake.rs"]
mod fake;
#[path = "support/fake_github.rs"]
mod fake_github;
#[path = "support/world.rs"]
mod world;

#[path = "gateway/autoscaler.rs"]
mod autoscaler;
#[path = "gateway/builders.rs"]
mod builders;
#[path = "gateway/calls.rs"]
mod calls;
#[path = "gateway/control.rs"]
mod control;
#[path = "gateway/crowd.rs"]
mod crowd;
#[path = "gateway/deployments.rs"]
mod deployments;
#[path = "gateway/drain.rs"]
mod drain;
#[path = "gateway/edges.rs"]
mod edges;
#[path = "gateway/fleet.rs"]
mod fleet;
#[path = "gateway/gateways.rs"]
mod gateways;
#[path = "gateway/git.rs"]
mod git;
#[path = "gateway/http.rs"]
mod http;
#[path = "gateway/openapi.rs"]
mod openapi;
#[path = "gateway/raw.rs"]
mod raw;
#[path = "gateway/slow.rs"]
mod slow;
#[path = "gateway/sockets.rs"]
mod sockets;
#[path = "gateway/tls.rs"]
mod tls;
#[path = "gateway/traffic.rs"]
mod traffic;
#[path = "gateway/webhook.rs"]
mod webhook;
