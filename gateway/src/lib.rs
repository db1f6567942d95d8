//! The gateway: takes calls, finds a VM for each, streams both ways; and the control API.
//!
//! Life of a call: [`call`] is the path, its files in the order in which a call meets them. It reads
//! [`routes`] (which version answers to a name) and [`fleet`] (which VMs there are), both in memory; no
//! call waits for the store. Everything else changes these two: [`deploy`] and [`control`].
//!
//! | module | what it owns |
//! |---|---|
//! | [`app`] | builds, starts and ends the parts |
//! | [`config`] | settings and every limit |
//! | `call` | the public listener and a call's way |
//! | `routes` | names → versions, in memory |
//! | `fleet` | the VMs |
//! | [`autoscale`] | how many VMs there should be, and who goes |
//! | `deploy` | archive → versions that serve, all or none |
//! | `git` | `git push` as a deployment |
//! | `control` | the control API |
//! | `health` | what it says of itself to load balancers |
//! | `keys` | the keys of the gateway's own doors |
//! | `networks` | lists of CIDRs |
//! | `sync` | in step with the store, which other gateways change |
//! | `traffic` | splits of a function's calls among its versions |
//! | `sweep` | instances that nobody serves |
//! | `urls` | addresses that are shown to people |
//! | `webhook` | pushes that a hub tells of as deployments |
//! | `warm` | instances that functions want ready when nobody calls |
//! | `observe` | events and metrics |

mod call;
mod control;
mod deploy;
mod fleet;
mod git;
mod health;
mod keys;
mod networks;
mod observe;
mod retention;
mod routes;
mod sweep;
mod sync;
mod traffic;
mod urls;
mod warm;
mod webhook;

pub mod app;
pub mod autoscale;
pub mod config;

/// The rules of placement without a fleet, for the simulation in `benches`.
pub mod placement {
    pub use crate::call::place::{bound, choice, ring, stable, trial};
}

#[cfg(test)]
#[path = "../tests/support/fake.rs"]
mod testing;
