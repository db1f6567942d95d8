//! Where a reader of a log is: the place of the last line that it got from each VM. A gateway that is asked again with
//! these answers with what came since; lines need no comparison, and their times, which code writes, do not matter. Pure.

use epsilon_api::{
    ids::VmId,
    log::{LogCursor, LogPosition, LogRecord},
};
use std::collections::BTreeMap;

/// One place for each VM that had a line.
#[derive(Debug, Default)]
pub(super) struct Cursors(BTreeMap<VmId, LogPosition>);

impl Cursors {
    /// This line was read. One that its VM could not keep has no place.
    pub(super) fn passed(&mut self, record: &LogRecord) {
        if let (Some(vm), Some(position)) = (&record.vm, record.position) {
            self.0.insert(vm.clone(), position);
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = LogCursor> {
        self.0.iter().map(|(vm, position)| LogCursor { vm: vm.clone(), position: *position })
    }
}
