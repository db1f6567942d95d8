//! What every listener of the platform shares: the listening port ([`listen`]) with its limit on
//! connections ([`limiter`]), TLS ([`tls`]), the end of a listener ([`Shutdown`]), and interim
//! answers ([`interim`]). Used by the gateway's two listeners, and through `epsilon-fleet-link` by
//! those of agents and builders. What a request means, and who may send one, is not known here.

pub mod coalesce;
mod deadline_timer;
pub mod interim;
pub mod limiter;
pub mod listen;
mod shutdown;
pub mod tls;

pub use deadline_timer::DeadlineTimer;
pub use shutdown::Shutdown;
