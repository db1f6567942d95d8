//! Whether the store answers, as last seen by whoever asked it. Who would only wait for it asks here first.

use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus::IntGauge;

/// See the module.
#[derive(Debug)]
pub(crate) struct StoreWatch {
    away_since: Mutex<Option<Timestamp>>,
    /// 1 while it answers.
    up: IntGauge,
}

impl StoreWatch {
    /// It has answered so far.
    pub(crate) fn new(up: IntGauge) -> Self {
        up.set(1);
        Self { away_since: Mutex::default(), up }
    }

    /// It answered.
    pub(crate) fn answered(&self) {
        if self.away_since.lock().take().is_some() {
            tracing::info!("The store answers again.");
            self.up.set(1);
        }
    }

    /// It did not.
    pub(crate) fn silent(&self) {
        let mut away_since = self.away_since.lock();
        if away_since.is_none() {
            *away_since = Some(Timestamp::now());
            tracing::error!("The store does not answer; calls go on with what is known.");
            self.up.set(0);
        }
    }

    /// Since when it does not answer.
    pub(crate) fn away_since(&self) -> Option<Timestamp> {
        *self.away_since.lock()
    }
}
