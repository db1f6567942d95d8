//! One connection, as its handler sees it, and what it holds: its slot, its state, its exchange.

use crate::{
    activity::{Activity, Check},
    exchange::Exchange,
    interim::CleanHeaders,
    limiter::{Occupant, Slot},
    limits::Limits,
};
use epsilon_api::{body::Holding, vm::InterimSink};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Body;
use parking_lot::Mutex;
use prometheus::IntGauge;
use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// One connection.
#[derive(Debug)]
pub struct Connection {
    /// Address of the peer: a caller or a proxy.
    pub peer: IpAddr,
    /// The same as a header's value, made once for all requests.
    pub peer_header: HeaderValue,
    pub(crate) activity: Arc<Activity>,
    pub(crate) exchange: Exchange,
    certificate: OnceLock<Certificate>,
    has_received_request: AtomicBool,
    /// Releases the connection slot when the last holder is dropped: the connection, an answer's
    /// body or a tunnel; earlier for tunnels of a listener that does not count them.
    slot_guard: Mutex<Option<SlotGuard>>,
}

/// Whether the peer of a connection proved with a TLS certificate that it belongs to the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// No certificate was requested: TLS is not set up, or a local program speaks plain HTTP.
    NotRequested,
    /// TLS without a client certificate: an operator, a metrics collector, git, GitHub.
    Missing,
    /// A certificate of the fleet's authority.
    Verified,
}

/// A slot, and its part in the gauge of open connections.
#[derive(Debug)]
pub(crate) struct SlotGuard {
    open: Option<IntGauge>,
    slot: Slot,
}

impl SlotGuard {
    pub(crate) fn new(slot: Slot, open: Option<IntGauge>) -> Self {
        if let Some(open) = &open {
            open.inc();
        }
        Self { open, slot }
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        if let Some(open) = &self.open {
            open.dec();
        }
    }
}

impl Connection {
    pub(crate) fn new(peer: SocketAddr, limits: &Limits, slot_guard: Option<SlotGuard>) -> Self {
        let activity = Arc::new(Activity::new(limits.pace, limits.unread_end_timeout));
        if let Some(slot_guard) = &slot_guard {
            slot_guard.slot.occupy(Arc::downgrade(&activity) as Weak<dyn Occupant>);
        }
        Self::of(peer, activity, slot_guard)
    }

    fn of(peer: SocketAddr, activity: Arc<Activity>, slot_guard: Option<SlotGuard>) -> Self {
        let peer = peer.ip().to_canonical();
        let peer_header =
            HeaderValue::from_str(&peer.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        let exchange = Exchange::default();
        let certificate = OnceLock::new();
        let has_received_request = AtomicBool::new(false);
        Self {
            peer,
            peer_header,
            activity,
            exchange,
            certificate,
            has_received_request,
            slot_guard: Mutex::new(slot_guard),
        }
    }

    /// A connection without a socket, for tests of handlers.
    #[cfg(any(test, feature = "testing"))]
    pub fn without_socket(peer: SocketAddr) -> Self {
        let pace = crate::pace::PaceLimits { wait_budget: Duration::from_secs(10), rate: 1024 };
        Self::of(peer, Arc::new(Activity::new(pace, None)), None)
    }

    /// What `read` says of the slot; `None` if the connection has none.
    pub(crate) fn with_slot<T>(&self, read: impl FnOnce(&Slot) -> T) -> Option<T> {
        self.slot_guard.lock().as_ref().map(|slot_guard| read(&slot_guard.slot))
    }

    /// Gives the slot to another connection although this one goes on, as a tunnel.
    pub(crate) fn release_slot(&self) {
        drop(self.slot_guard.lock().take());
    }

    /// Called once, when the peer's TLS is known.
    pub(crate) fn set_certificate(&self, what: Certificate) {
        self.certificate.get_or_init(|| what);
    }

    /// What the peer proved by its certificate.
    pub fn certificate(&self) -> Certificate {
        self.certificate.get().copied().unwrap_or(Certificate::Missing)
    }

    /// Whether it speaks TLS.
    pub fn is_secure(&self) -> bool {
        self.certificate.get().is_some_and(|shown| *shown != Certificate::NotRequested)
    }

    /// Whether there is no room for it, except to say so or to answer a health check.
    pub fn is_reserve(&self) -> bool {
        self.with_slot(Slot::is_reserve).unwrap_or_default()
    }

    /// The peer has authenticated: its connection is not counted by address any more, and is closed
    /// after those of others when there is no room.
    pub fn trust(&self) {
        self.with_slot(Slot::trust);
    }

    /// The connection became a tunnel and counts as busy until it ends.
    pub fn upgraded(&self) {
        self.activity.upgraded();
    }

    /// Sets a deadline for the answer that is being written: protects against callers that stop
    /// reading.
    pub fn answer_within(&self, limit: Duration) {
        self.activity.answer_within(limit);
    }

    /// Where the interim answers (1xx) of the current call are written, and what happens to their
    /// headers before.
    pub fn interim(self: &Arc<Self>, clean: CleanHeaders) -> Arc<dyn InterimSink> {
        self.exchange.interims.set_clean(clean);
        Arc::<Self>::clone(self)
    }

    pub(crate) fn has_received_request(&self) -> bool {
        self.has_received_request.load(Relaxed)
    }

    pub(crate) fn check(&self, limits: &Limits, now: Instant) -> Check {
        let is_crowded = self.with_slot(Slot::is_crowded).unwrap_or_default();
        self.activity.check(limits, is_crowded, now)
    }
}

impl InterimSink for Connection {
    fn interim(&self, status: StatusCode, headers: HeaderMap) {
        self.exchange.interims.push(status, headers);
    }
}

/// Marks the connection as busy for as long as it lives: while a request is answered.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Connection>);

impl Busy {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        connection.has_received_request.store(true, Relaxed);
        connection.activity.begin_request();
        Self(connection)
    }

    /// Gives a body of known length a deadline if none was set.
    pub(crate) fn until_end_of<B: Body>(self, body: B) -> Holding<B, Self> {
        if body.size_hint().exact().is_some() {
            self.0.activity.is_whole();
        }
        Holding { body, held: self }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.activity.end_request();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::tests::is_over;
    use epsilon_api::body::{self, BodyError};

    /// Without it, a caller who never reads an answer without a deadline would hold its connection
    /// forever.
    #[test]
    fn a_complete_answer_always_has_a_deadline() {
        let peer = "10.0.0.9:1".parse().unwrap();
        let connection = || Arc::new(Connection::without_socket(peer));
        let (whole, stream, limited) = (connection(), connection(), connection());
        let _whole = Busy::new(Arc::clone(&whole)).until_end_of(body::full("ok"));
        assert!(!is_over(&whole.activity, 8) && is_over(&whole.activity, 12));
        let frames =
            futures_util::stream::pending::<Result<http_body::Frame<bytes::Bytes>, BodyError>>();
        let endless = body::boxed(http_body_util::StreamBody::new(frames));
        let _stream = Busy::new(Arc::clone(&stream)).until_end_of(endless);
        assert!(!is_over(&stream.activity, 1_000_000));
        let busy = Busy::new(Arc::clone(&limited));
        limited.answer_within(Duration::from_secs(100));
        let _limited = busy.until_end_of(body::full("ok"));
        assert!(!is_over(&limited.activity, 99) && is_over(&limited.activity, 101));
    }
}
