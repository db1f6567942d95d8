//! The histories of all functions of this VM, a bounded number: beyond it, the least recently
//! requested one is forgotten, never one that is in use.

use super::history::{History, StoredHistory};
use epsilon_api::ids::FunctionName;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};

/// Limit of histories; each takes a kilobyte.
const MOST: usize = 4096;

/// The histories by function. Cheap to query: one lock.
#[derive(Debug, Default)]
pub(crate) struct Histories(Mutex<HistoryMap>);

#[derive(Debug, Default)]
struct HistoryMap {
    by_function: HashMap<FunctionName, Entry>,
    /// Counts requests; the age of an entry.
    requested: u64,
}

#[derive(Debug)]
struct Entry {
    history: Arc<History>,
    requested: u64,
}

impl Histories {
    /// Restores the histories of an earlier run.
    pub(crate) fn restore(earlier: Vec<(FunctionName, StoredHistory)>) -> Self {
        let histories = Self::default();
        for (function, stored) in earlier {
            histories.0.lock().insert(function, History::restore(stored));
        }
        histories
    }

    /// The function's history; a new one if there is none.
    pub(crate) fn of(&self, function: &FunctionName) -> Arc<History> {
        let mut map = self.0.lock();
        map.requested += 1;
        let requested = map.requested;
        if let Some(entry) = map.by_function.get_mut(function) {
            entry.requested = requested;
            return Arc::clone(&entry.history);
        }
        map.insert(function.clone(), History::default())
    }

    /// The function was deleted.
    pub(crate) fn forget(&self, function: &FunctionName) {
        self.0.lock().by_function.remove(function);
    }

    /// The lasting parts of all histories, if any of them changed since the last time.
    pub(crate) fn changes(&self) -> Option<Vec<(FunctionName, StoredHistory)>> {
        let map = self.0.lock();
        let mut any = false;
        let stored = |(function, entry): (&FunctionName, &Entry)| {
            let (stored, is_changed) = entry.history.stored();
            any |= is_changed;
            (function.clone(), stored)
        };
        let all: Vec<_> = map.by_function.iter().map(stored).collect();
        any.then_some(all)
    }
}

impl HistoryMap {
    fn insert(&mut self, function: FunctionName, history: History) -> Arc<History> {
        if self.by_function.len() >= MOST {
            let unused =
                self.by_function.iter().filter(|(_, e)| Arc::strong_count(&e.history) == 1);
            let oldest =
                unused.min_by_key(|(_, entry)| entry.requested).map(|(name, _)| name.clone());
            oldest.map(|name| self.by_function.remove(&name));
        }
        let history = Arc::new(history);
        let entry = Entry { history: Arc::clone(&history), requested: self.requested };
        self.by_function.insert(function, entry);
        history
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moment::Moment;

    fn name(n: usize) -> FunctionName {
        FunctionName::parse(&format!("f{n}")).unwrap()
    }

    #[test]
    fn the_oldest_unused_history_is_forgotten() {
        let histories = Histories::default();
        let used = histories.of(&name(0));
        (1..MOST).for_each(|n| drop(histories.of(&name(n))));
        histories.of(&name(1)); // requested again
        histories.of(&name(MOST));
        let map = histories.0.lock();
        assert_eq!(map.by_function.len(), MOST);
        let has = |n| map.by_function.contains_key(&name(n));
        assert!(has(0) && has(1) && !has(2) && has(MOST));
        drop(used);
    }

    #[test]
    fn history_outlives_a_version_but_not_its_function() {
        let histories = Histories::default();
        let first = histories.of(&name(1));
        first.calls_ended(Moment::ZERO);
        first.call_began(Moment::from_secs(60));
        assert!(histories.of(&name(1)).has_samples());
        histories.forget(&name(1));
        assert!(!histories.of(&name(1)).has_samples());
    }

    #[test]
    fn changes_are_reported_once() {
        let histories = Histories::default();
        let one = histories.of(&name(1));
        assert_eq!(histories.changes(), None);
        one.calls_ended(Moment::ZERO);
        one.call_arrived(Moment::from_secs(60));
        let changes = histories.changes().unwrap();
        assert_eq!(histories.changes(), None);
        assert!(Histories::restore(changes).of(&name(1)).has_samples());
    }
}
