//! Types that the parts of Epsilon share: ids, function settings, messages, errors.
//!
//! No I/O, no runtime, no HTTP library beyond the plain `http` types. Gateway, vm-agent and builder
//! never see each other; they meet in the two traits here, [`vm::Vm`] and [`build::Builder`].
//!
//! | module | what it names |
//! |---|---|
//! | [`ids`] | names and numbers as newtypes, validated by parsing |
//! | [`units`] | bytes and cores |
//! | [`function`] | settings of a function, one immutable version of it |
//! | [`vm`] | one VM as the gateway sees it: calls in, answers out |
//! | [`build`] | one builder as the gateway sees it: source in, images out |
//! | [`fleet`] | messages between gateways, agents and builders |
//! | [`admin`] | bodies of the control API |
//! | [`hook`] | the answer to a webhook delivery |
//! | [`autoscaler`] | state of the autoscaler |
//! | [`traffic`] | how calls are split among versions |
//! | [`log`] | one line of a function's log |
//! | [`error`] | why a call failed, and what to report to whom |
//! | [`headers`] | headers of the platform |
//! | [`serde_text`] | deserializers for values as people write them |

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
pub mod serde_text;
pub mod suggest;
pub mod traffic;
pub mod units;
pub mod vm;
