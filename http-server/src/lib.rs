//! The HTTP/1 server under every listener of the platform: the gateway's two, and through
//! `epsilon-fleet-link` those of agents and builders. What a request means, and who may send one,
//! is its [`Handler`]'s business.
//!
//! ```text
//! listen ─▶ limiter ─▶ server: TLS ─▶ serve: hyper over transport over socket ─▶ Handler
//!  port      a slot                     │ activity: idle, slow, unread
//!                                       └ refusal: what is not a request
//! ```
//!
//! | file | what it does |
//! |---|---|
//! | [`listen`], [`limiter`] | the port, and how many connections may be open |
//! | [`server`] | accepts; one task per connection; TLS ([`tls`]) |
//! | `serve` | one connection from its first byte to its end |
//! | [`limits`], `activity`, [`pace`] | how long a connection may be idle, slow or unread |
//! | `transport`, `socket`, `exchange`, `target`, `refusal`, `interim`, [`coalesce`] | what hyper has no setting for |
//! | [`observed`], [`limited`] | a body whose frames are observed; a request's body within its limits |

mod activity;
pub mod coalesce;
mod connection;
mod deadline_timer;
mod exchange;
mod handler;
mod interim;
pub mod limited;
pub mod limiter;
pub mod limits;
pub mod listen;
pub mod observed;
pub mod pace;
mod refusal;
mod serve;
pub mod server;
mod shutdown;
mod socket;
mod target;
pub mod tls;
mod transport;

pub use activity::WRITE_SLACK;
pub use connection::{Certificate, Connection};
pub use deadline_timer::DeadlineTimer;
pub use handler::{Handler, Refused};
pub use limits::Limits;
pub use server::{Security, Server};
pub use shutdown::Shutdown;
