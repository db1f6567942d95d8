//! The connection table, with scripted connections.

use super::*;
use std::sync::atomic::AtomicU64;

/// Seconds without a request, or busy.
#[derive(Debug, Default)]
struct Played {
    idle_for: AtomicU64,
    is_busy: AtomicBool,
    close_requested: AtomicBool,
}

impl Occupant for Played {
    fn idle_for(&self) -> Option<Duration> {
        let idle = Duration::from_secs(self.idle_for.load(Relaxed));
        (!self.is_busy.load(Relaxed)).then_some(idle)
    }

    fn close(&self) {
        self.close_requested.store(true, Relaxed);
    }
}

/// An open connection.
struct Open(Slot, Arc<Played>);

impl Open {
    fn idle(self, seconds: u64) -> Self {
        self.1.idle_for.store(seconds, Relaxed);
        self
    }

    fn busy(self) -> Self {
        self.1.is_busy.store(true, Relaxed);
        self
    }

    fn is_closing(&self) -> bool {
        self.1.close_requested.load(Relaxed)
    }
}

fn limiter(connections: usize, per_address: usize, reserve: usize) -> Arc<Limiter> {
    let exempt = Exempt::new(|address| address.is_loopback());
    Limiter::new(Limits { connections, per_address, reserve, exempt })
}

fn opened(limiter: &Arc<Limiter>, address: &str) -> Result<Open, &'static str> {
    match limiter.admit(address.parse().unwrap()) {
        Admission::Slot(slot) => {
            let played = Arc::new(Played::default());
            slot.occupy(Arc::downgrade(&played) as Weak<dyn Occupant>);
            Ok(Open(slot, played))
        }
        Admission::Full => Err("full"),
        Admission::TooMany => Err("too many"),
    }
}

fn open(limiter: &Arc<Limiter>, address: &str) -> Open {
    opened(limiter, address).unwrap_or_else(|why| panic!("{address}: {why}"))
}

fn counts(limiter: &Limiter) -> (usize, usize, usize) {
    let table = limiter.table.lock();
    assert_eq!(table.used, limiter.used.load(Relaxed));
    (table.used, table.reserved, table.per_address.values().sum())
}

#[test]
fn longest_idle_connection_is_closed_never_a_busy_one() {
    let limiter = limiter(4, 4, 0);
    let all = [
        open(&limiter, "10.0.0.1").busy(),
        open(&limiter, "10.0.0.2").idle(7),
        open(&limiter, "10.0.0.3").idle(70),
        open(&limiter, "10.0.0.4").idle(0),
    ];
    let closing = || all.each_ref().map(Open::is_closing);
    let fifth = open(&limiter, "10.0.0.5").busy();
    assert_eq!(closing(), [false, false, true, false]);
    let sixth = open(&limiter, "10.0.0.6").busy();
    assert_eq!(closing(), [false, true, true, false]);
    // The others are busy, or may be about to send.
    assert_eq!(opened(&limiter, "10.0.0.7").err(), Some("full"));
    assert_eq!(counts(&limiter), (4, 0, 4));
    drop((fifth, sixth, all));
    assert_eq!(counts(&limiter), (0, 0, 0));
}

#[test]
fn connection_with_a_late_request_stays_and_counts() {
    let limiter = limiter(1, 1, 0);
    let first = open(&limiter, "10.0.0.1").idle(9);
    let second = open(&limiter, "10.0.0.2").busy();
    assert!(first.is_closing());
    let first = first.busy();
    first.0.keep();
    assert_eq!(counts(&limiter), (2, 0, 2), "for a moment there is one more");
    drop(second);
    assert_eq!(opened(&limiter, "10.0.0.2").err(), Some("full"));
    drop(first);
    assert_eq!(counts(&limiter), (0, 0, 0));
}

#[test]
fn an_address_has_its_share_and_closes_its_own() {
    let limiter = limiter(100, 3, 0);
    let other = open(&limiter, "10.0.0.9").idle(1000);
    let mine: Vec<_> = (1..=3).map(|n| open(&limiter, "10.0.0.1").idle(10 * n)).collect();
    let fourth = open(&limiter, "10.0.0.1").busy();
    assert!(mine[2].is_closing() && !other.is_closing());
    let mine: Vec<_> = mine.into_iter().map(Open::busy).collect();
    assert_eq!(opened(&limiter, "10.0.0.1").err(), Some("too many"));
    // IPv4 in IPv6 is the same caller, and so is a whole /64.
    assert_eq!(opened(&limiter, "::ffff:10.0.0.1").err(), Some("too many"));
    let _six: Vec<_> = (1..=3).map(|n| open(&limiter, &format!("2001:db8::{n}")).busy()).collect();
    assert_eq!(opened(&limiter, "2001:db8::4").err(), Some("too many"));
    drop(open(&limiter, "2001:db8:0:1::4"));
    let _exempt: Vec<_> = (0..9).map(|_| open(&limiter, "127.0.0.1").busy()).collect();
    drop((mine, fourth));
    drop(open(&limiter, "10.0.0.1"));
}

#[test]
fn the_reserve_is_beyond_all_and_turns_over() {
    let limiter = limiter(2, 2, 2);
    let _busy = [open(&limiter, "10.0.0.1").busy(), open(&limiter, "10.0.0.2").busy()];
    let silent = [open(&limiter, "10.0.0.3"), open(&limiter, "10.0.0.4").idle(1)];
    assert!(silent.iter().all(|open| open.0.is_reserve()));
    let third = open(&limiter, "10.0.0.5").busy();
    assert_eq!(silent.each_ref().map(Open::is_closing), [false, true]);
    let fourth = open(&limiter, "10.0.0.6").busy();
    assert_eq!(silent.each_ref().map(Open::is_closing), [true, true]);
    assert_eq!(opened(&limiter, "10.0.0.7").err(), Some("full"));
    assert_eq!(counts(&limiter), (2, 2, 4));
    drop((third, fourth));
}

#[test]
fn authenticated_peer_is_uncounted_and_closed_last() {
    let limiter = limiter(4, 1, 0);
    let mut known = Vec::new();
    for _ in 0..3 {
        let one = open(&limiter, "10.0.0.1").idle(100);
        one.0.trust();
        known.push(one);
    }
    let stranger = open(&limiter, "10.0.0.1").idle(1);
    let _next = open(&limiter, "10.0.0.2").busy();
    assert!(stranger.is_closing() && known.iter().all(|one| !one.is_closing()));
}

#[test]
fn crowded_is_more_than_four_fifths() {
    let limiter = limiter(10, 10, 0);
    let mut all: Vec<_> = (0..8).map(|_| open(&limiter, "10.0.0.1")).collect();
    assert!(!limiter.is_crowded());
    all.push(open(&limiter, "10.0.0.1"));
    assert!(limiter.is_crowded() && all[0].0.is_crowded());
}

/// A full table is scanned once for many newcomers, not once for each.
#[test]
fn many_are_closed_at_once_where_there_are_many() {
    let limiter = limiter(1000, 1000, 0);
    let all: Vec<_> = (0..1000).map(|n| open(&limiter, "10.0.0.1").idle(1 + n)).collect();
    let _next = open(&limiter, "10.0.0.1").busy();
    assert_eq!(all.iter().filter(|one| one.is_closing()).count(), 10);
    assert!(all[990..].iter().all(Open::is_closing));
    assert_eq!(counts(&limiter), (991, 0, 991));
}

#[test]
fn connections_stay_within_share_of_open_files() {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let files = files.map_or(usize::MAX, |files| files as usize);
    assert_eq!(within_files(usize::MAX, 2), files / 2);
    assert_eq!(within_files(usize::MAX, usize::MAX), 1);
    assert_eq!(within_files(1, 2), 1);
}
