//! The limits on the connections of one listener, and how they follow from each other. Who sets
//! them: the gateway's settings, and `epsilon-fleet-link` for members.

use crate::{
    limiter::{self, Exempt},
    pace::PaceLimits,
};
use std::time::Duration;

/// One connection slot in this many is reserved for health checks, beyond all others.
const RESERVE: usize = 100;
/// How long a connection of the reserve may take to send its head.
const RESERVE_HEAD: Duration = Duration::from_secs(1);

/// Limits of a listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections.
    pub max_connections: usize,
    /// Of these, connections of one address.
    pub max_per_address: usize,
    /// Addresses that stand for many callers, to which `max_per_address` does not apply.
    pub exempt: Exempt,
    /// Whether some connections more are answered when all slots are taken
    /// ([`crate::Connection::is_reserve`]).
    pub has_reserve: bool,
    /// Whether a connection that became a tunnel (WebSocket) still counts among `max_connections`.
    pub counts_tunnels: bool,
    /// Bytes of a head.
    pub max_header: usize,
    /// Fields of a head.
    pub max_headers: usize,
    /// Longest time for a TLS handshake, and for a complete head from its first byte.
    pub header_timeout: Duration,
    /// How long a connection may be idle between two requests.
    pub idle_timeout: Duration,
    /// The same when four fifths of the slots are taken. Such a connection is closed at most
    /// `header_timeout` later; when no slot is left at all, the limiter closes idle connections at
    /// once.
    pub crowded_idle_timeout: Duration,
    /// How slowly an answer may be read.
    pub pace: PaceLimits,
    /// How long a peer that closed its sending half may make no progress. `None`: such a peer has
    /// hung up.
    pub half_close_timeout: Option<Duration>,
    /// How long the end of an answer may stay unread, also beyond the answer's deadline. `None`: to
    /// the deadline.
    pub unread_end_timeout: Option<Duration>,
}

impl Limits {
    pub(crate) fn of_listener(&self) -> limiter::Limits {
        limiter::Limits {
            connections: self.max_connections,
            per_address: self.max_per_address,
            reserve: if self.has_reserve { (self.max_connections / RESERVE).max(1) } else { 0 },
            exempt: self.exempt.clone(),
        }
    }

    /// Lowers the limits to one of `share` of the files that this process may open.
    #[must_use]
    pub fn within_files(&self, share: usize) -> Self {
        let max_connections = limiter::within_files(self.max_connections, share);
        // An address keeps the same fraction of the lower total.
        let part = self.max_per_address as u128 * max_connections as u128;
        let part = part / (self.max_connections as u128).max(1);
        let max_per_address = usize::try_from(part).unwrap_or(usize::MAX).max(1);
        Self { max_connections, max_per_address, ..self.clone() }
    }

    pub(crate) fn of_reserve(&self) -> Self {
        Self { header_timeout: self.header_timeout.min(RESERVE_HEAD), ..self.clone() }
    }
}
