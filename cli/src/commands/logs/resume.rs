//! Which lines were shown already, when a log is read again after the connection broke. Pure.
//!
//! Lines come in the order of their time. What was shown at the newest moment is kept, because several
//! lines may carry the same time.

use epsilon_api::log::LogRecord;
use jiff::Timestamp;

/// Remembers where a reader was.
#[derive(Debug, Default)]
pub(super) struct Resume {
    newest: Option<Timestamp>,
    /// The lines of that moment.
    shown: Vec<LogRecord>,
}

impl Resume {
    /// Whether a line was not shown yet; from now on it was.
    pub(super) fn is_new(&mut self, record: &LogRecord) -> bool {
        match self.newest {
            Some(newest) if record.time < newest => return false,
            Some(newest) if record.time == newest => {
                if self.shown.contains(record) {
                    return false;
                }
            }
            Some(_) | None => {
                self.newest = Some(record.time);
                self.shown.clear();
            }
        }
        self.shown.push(record.clone());
        true
    }
}
