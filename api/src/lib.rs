//! The words that the parts of Epsilon share: ids, function settings, wire types, errors.
//!
//! No I/O, no runtime, no HTTP library beyond the plain `http` types. Gateway, vm-agent and builder
//! never see each other; they meet in the two traits here, [`vm::Vm`] and [`build::Builder`].
//!
//! | module | what it names |
//! |---|---|
//! | [`ids`] | names and numbers, valid by construction |
//! | [`units`] | bytes and cores |
//! | [`function`] | what a developer asks for: settings of one function, one immutable version |
//! | [`vm`] | one VM as the gateway sees it: calls in, answers out |
//! | [`build`] | one builder as the gateway sees it: source in, images out |
//! | [`fleet`] | what gateways, agents and builders say to each other |
//! | [`admin`] | bodies of the control API |
//! | [`hook`] | what a webhook's delivery is answered with |
//! | [`autoscaler`] | what the autoscaler shows of itself |
//! | [`traffic`] | how calls are split among versions |
//! | [`log`] | one line of a function's log |
//! | [`error`] | why a call failed, and what to say to whom |
//! | [`headers`] | names of the headers that belong to the platform |
//! | [`written`] | how people write values in settings |

pub mod admin;
pub mod autoscaler;
pub mod body;
pub mod build;
pub mod chain;
pub mod error;
pub mod fleet;
pub mod function;
pub mod headers;
pub mod hook;
pub mod ids;
pub mod log;
pub mod redacted;
pub mod suggest;
pub mod traffic;
pub mod units;
pub mod vm;
pub mod written;
