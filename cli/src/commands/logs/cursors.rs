//! Positions of a log reader: the last line received from each VM. The gateway resumes from them;
//! lines need no comparison, and their times, which code writes, do not matter. Pure.

use epsilon_api::{
    ids::VmId,
    log::{LogCursor, LogPosition, LogRecord},
};
use std::collections::BTreeMap;

/// One position for each VM that sent a line.
#[derive(Debug, Default)]
pub(super) struct Cursors(BTreeMap<VmId, LogPosition>);

impl Cursors {
    /// Records a line that was read. A line that its VM could not store has no position.
    pub(super) fn record_read(&mut self, record: &LogRecord) {
        if let (Some(vm), Some(position)) = (&record.vm, record.position) {
            self.0.insert(vm.clone(), position);
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = LogCursor> {
        self.0.iter().map(|(vm, position)| LogCursor { vm: vm.clone(), position: *position })
    }
}
