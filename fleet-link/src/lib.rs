//! How the parts of a fleet talk to each other: pooled HTTP/1.1 connections ([`connection`]),
//! signed gateway tokens ([`gateway_token`]), the listener where members check them
//! ([`authenticated_listener`]), how a member joins and stays ([`membership`]), one attempt for all
//! who need the same ([`single_flight`]), the clock of the tokens ([`clock`]), TLS from an
//! operator's PEM files ([`tls`]) and their expiry ([`certificate`]), and a metrics listener
//! ([`metrics`]). How a listener serves is `epsilon-http-server`'s.
//!
//! The messages themselves are in `epsilon_api::fleet`; gateway, vm-agent and builder send them.

pub mod authenticated_listener;
pub mod certificate;
pub mod clock;
pub mod connection;
pub mod gateway_token;
pub mod membership;
pub mod metrics;
mod secret_file;
pub mod single_flight;
pub mod tls;
