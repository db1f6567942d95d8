//! How the parts of a fleet talk to each other: kept HTTP/1.1 connections ([`connection`]), signed passes that
//! say which gateway asks ([`pass`]), the door where members check them ([`door`]), how a member joins and stays
//! ([`join`]), one attempt for all who want the same ([`together`]), the clock that passes are dated by ([`clock`]), TLS from an operator's
//! PEM files ([`tls`]) and until when they hold ([`certificate`]), interim answers to a caller ([`interim`]), a listener for collectors of metrics ([`metrics`]), and the port under all of these ([`listen`])
//! with its limit on connections ([`limiter`]).
//!
//! What they say is `epsilon_api::fleet`; who says it is gateway, vm-agent and builder.

pub mod certificate;
pub mod clock;
pub mod connection;
pub mod door;
pub mod interim;
pub mod join;
pub mod limiter;
pub mod listen;
pub mod metrics;
pub mod pass;
mod private;
pub mod tls;
pub mod together;
