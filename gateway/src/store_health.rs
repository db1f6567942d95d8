//! Whether the store answers and accepts writes, as last observed by its users. Requests that would
//! only wait for it check this first.

use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus::IntGauge;

/// The observed health of the store.
#[derive(Debug)]
pub(crate) struct StoreHealth {
    since: Mutex<Since>,
    /// 1 while the store answers and accepts writes.
    up: IntGauge,
}

/// Since when the store has a problem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Since {
    /// It does not answer.
    pub(crate) unavailable: Option<Timestamp>,
    /// It does not accept writes: its disk is full.
    pub(crate) full: Option<Timestamp>,
}

impl StoreHealth {
    /// A store that has answered so far.
    pub(crate) fn new(up: IntGauge) -> Self {
        up.set(1);
        Self { since: Mutex::default(), up }
    }

    /// It answered a query; that does not show whether it accepts writes.
    pub(crate) fn mark_answered(&self) {
        self.note(|since| {
            if since.unavailable.take().is_some() {
                tracing::info!("Store answers again.");
            }
        });
    }

    /// It accepted a write.
    pub(crate) fn mark_writable(&self) {
        self.note(|since| {
            if since.full.take().is_some() {
                tracing::info!("Store accepts writes again.");
            }
        });
    }

    /// It did not answer.
    pub(crate) fn mark_unavailable(&self) {
        self.note(|since| {
            if since.unavailable.is_none() {
                since.unavailable = Some(Timestamp::now());
                tracing::error!("Store does not answer; calls continue with the known state.");
            }
        });
    }

    /// It reported that its disk is full.
    pub(crate) fn mark_full(&self) {
        self.note(|since| {
            since.unavailable = None;
            if since.full.is_none() {
                since.full = Some(Timestamp::now());
                tracing::error!(
                    "Store's disk is full; calls continue, but nothing can be deployed or changed."
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
    pub(crate) fn unavailable_since(&self) -> Option<Timestamp> {
        self.since.lock().unavailable
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
        let watch = StoreHealth::new(up.clone());
        watch.mark_unavailable();
        assert_eq!((up.get(), watch.since().unavailable.is_some()), (0, true));
        watch.mark_full();
        assert_eq!((up.get(), watch.since().unavailable), (0, None), "it answered");
        watch.mark_answered();
        assert!(up.get() == 0 && watch.since().full.is_some(), "it was only read");
        watch.mark_writable();
        assert_eq!((up.get(), watch.since()), (1, Since::default()));
    }
}
