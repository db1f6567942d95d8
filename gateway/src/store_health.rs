//! Whether the store answers and accepts writes, as last observed by its users. Requests that would
//! only wait for it check this first.

use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus::IntGauge;

/// The observed health of the store.
#[derive(Debug)]
pub(crate) struct StoreWatch {
    since: Mutex<Since>,
    /// 1 while the store answers and accepts writes.
    up: IntGauge,
}

/// Since when the store has a problem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Since {
    /// It does not answer.
    pub(crate) away: Option<Timestamp>,
    /// It does not accept writes: its disk is full.
    pub(crate) full: Option<Timestamp>,
}

impl StoreWatch {
    /// A store that has answered so far.
    pub(crate) fn new(up: IntGauge) -> Self {
        up.set(1);
        Self { since: Mutex::default(), up }
    }

    /// It answered a query; that does not show whether it accepts writes.
    pub(crate) fn answered(&self) {
        self.note(|since| {
            if since.away.take().is_some() {
                tracing::info!("Store answers again.");
            }
        });
    }

    /// It accepted a write.
    pub(crate) fn wrote(&self) {
        self.note(|since| {
            if since.full.take().is_some() {
                tracing::info!("Store accepts writes again.");
            }
        });
    }

    /// It did not answer.
    pub(crate) fn silent(&self) {
        self.note(|since| {
            if since.away.is_none() {
                since.away = Some(Timestamp::now());
                tracing::error!("Store does not answer; calls go on with the known state.");
            }
        });
    }

    /// It reported that its disk is full.
    pub(crate) fn full(&self) {
        self.note(|since| {
            since.away = None;
            if since.full.is_none() {
                since.full = Some(Timestamp::now());
                tracing::error!(
                    "Store's disk is full; calls go on, but nothing can be deployed or changed."
                );
            }
        });
    }

    fn note(&self, event: impl FnOnce(&mut Since)) {
        let mut since = self.since.lock();
        event(&mut since);
        self.up.set(i64::from(*since == Since::default()));
    }

    /// Since when it does not answer.
    pub(crate) fn away_since(&self) -> Option<Timestamp> {
        self.since.lock().away
    }

    /// Since when it has a problem.
    pub(crate) fn since(&self) -> Since {
        *self.since.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_readable_store_stays_full_until_it_writes() {
        let up = IntGauge::new("up", "up").unwrap();
        let watch = StoreWatch::new(up.clone());
        watch.silent();
        assert_eq!((up.get(), watch.since().away.is_some()), (0, true));
        watch.full();
        assert_eq!((up.get(), watch.since().away), (0, None), "it answered");
        watch.answered();
        assert!(up.get() == 0 && watch.since().full.is_some(), "it was only read");
        watch.wrote();
        assert_eq!((up.get(), watch.since()), (1, Since::default()));
    }
}
