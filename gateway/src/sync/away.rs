//! Whether the store answers and takes what is written, as last seen by whoever asked it. Who would only wait for it asks here first.

use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus::IntGauge;

/// See the module.
#[derive(Debug)]
pub(crate) struct StoreWatch {
    since: Mutex<Since>,
    /// 1 while it answers and writes.
    up: IntGauge,
}

/// Since when something is wrong with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Since {
    /// It does not answer.
    pub(crate) away: Option<Timestamp>,
    /// It does not write: its disk is full.
    pub(crate) full: Option<Timestamp>,
}

impl StoreWatch {
    /// It has answered so far.
    pub(crate) fn new(up: IntGauge) -> Self {
        up.set(1);
        Self { since: Mutex::default(), up }
    }

    /// It answered; whether it would write is not known by that.
    pub(crate) fn answered(&self) {
        self.note(|since| {
            if since.away.take().is_some() {
                tracing::info!("The store answers again.");
            }
        });
    }

    /// It took what was written.
    pub(crate) fn wrote(&self) {
        self.note(|since| {
            if since.full.take().is_some() {
                tracing::info!("The store writes again.");
            }
        });
    }

    /// It did not answer.
    pub(crate) fn silent(&self) {
        self.note(|since| {
            if since.away.is_none() {
                since.away = Some(Timestamp::now());
                tracing::error!("The store does not answer; calls go on with what is known.");
            }
        });
    }

    /// It answered that its disk is full.
    pub(crate) fn full(&self) {
        self.note(|since| {
            since.away = None;
            if since.full.is_none() {
                since.full = Some(Timestamp::now());
                tracing::error!(
                    "The store's disk is full; calls go on, nothing can be deployed or changed."
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

    /// Since when something is wrong with it.
    pub(crate) fn since(&self) -> Since {
        *self.since.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_can_be_read_is_full_until_it_has_written() {
        let up = IntGauge::new("up", "up").unwrap();
        let watch = StoreWatch::new(up.clone());
        watch.silent();
        assert_eq!((up.get(), watch.since().away.is_some()), (0, true));
        watch.full();
        assert_eq!((up.get(), watch.since().away), (0, None), "it answered");
        watch.answered();
        assert!(up.get() == 0 && watch.since().full.is_some(), "it was read, no more");
        watch.wrote();
        assert_eq!((up.get(), watch.since()), (1, Since::default()));
    }
}
