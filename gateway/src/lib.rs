//! The gateway: accepts calls, finds a VM for each and streams both ways; and the control API.
//!
//! Life of a call: [`call`] is the path and names its phases in their order; [`invoke`] sends the
//! call to a VM. Both read [`routes`] (which version serves a name) and [`fleet`] (which VMs there
//! are), both in memory; no call waits for the store. Everything else changes these two: [`deploy`]
//! and [`functions`], for [`control`] and others.
//!
//! | module | what it does |
//! |---|---|
//! | [`app`] | builds, starts and stops the parts |
//! | [`config`] | settings and limits |
//! | `call` | the public listener and the path of a call |
//! | `invoke` | one call on one VM after the other, until one answers |
//! | `routes` | names → versions, in memory |
//! | `fleet` | the VMs |
//! | `deploy` | archive → serving versions, all or none |
//! | `functions` | roll back, promote, split, delete: changes of what serves |
//! | `control` | the control API |
//! | `health` | health for load balancers |
//! | `keys` | the keys of the gateway's listeners |
//! | `networks` | lists of CIDRs |
//! | `reconcile` | background loops: store, orphaned instances, retention, `minInstances`, prewarming |
//! | `refusal` | the answer to bytes that are not a request |
//! | `source` | where deployments come from besides the control API: `git push`, GitHub's webhooks |
//! | `store_error` | what a person reads when the store refuses a change |
//! | `store_health` | whether the store responds |
//! | `traffic` | splits of a function's calls among its versions |
//! | `urls` | URLs that are shown to people |
//! | `observe` | events and metrics |
//! | [`bench`] | lookup and placement without connections, for `benches` |

pub mod bench;
mod call;
mod control;
mod deploy;
mod fleet;
mod functions;
mod health;
mod invoke;
mod keys;
mod networks;
mod observe;
mod reconcile;
mod refusal;
mod routes;
mod source;
mod store_error;
mod store_health;
mod traffic;
mod urls;

pub mod app;
pub mod config;

#[cfg(test)]
#[path = "../tests/support/fake.rs"]
mod testing;
