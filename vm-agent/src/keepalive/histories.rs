//! The histories of all functions of this VM, a bounded number: beyond it, the least recently
//! requested one is forgotten, never one that is in use.

use super::history::{History, Lasting};
use epsilon_api::ids::FunctionName;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};

/// Limit of histories; each takes a kilobyte.
const MOST: usize = 4096;

/// The histories by function. Cheap to query: one lock.
#[derive(Debug, Default)]
pub(crate) struct Histories(Mutex<Shelf>);

#[derive(Debug, Default)]
struct Shelf {
    by_function: HashMap<FunctionName, Entry>,
    /// Counts requests; the age of an entry.
    asked: u64,
}

#[derive(Debug)]
struct Entry {
    history: Arc<History>,
    asked: u64,
}

impl Histories {
    /// Restores the histories of an earlier run.
    pub(crate) fn recall(earlier: Vec<(FunctionName, Lasting)>) -> Self {
        let histories = Self::default();
        for (function, lasting) in earlier {
            histories.0.lock().insert(function, History::recall(lasting));
        }
        histories
    }

    /// The function's history; a new one if there is none.
    pub(crate) fn of(&self, function: &FunctionName) -> Arc<History> {
        let mut shelf = self.0.lock();
        shelf.asked += 1;
        let asked = shelf.asked;
        if let Some(entry) = shelf.by_function.get_mut(function) {
            entry.asked = asked;
            return Arc::clone(&entry.history);
        }
        shelf.insert(function.clone(), History::default())
    }

    /// The function was deleted.
    pub(crate) fn forget(&self, function: &FunctionName) {
        self.0.lock().by_function.remove(function);
    }

    /// The lasting parts of all histories, if any of them changed since the last time.
    pub(crate) fn news(&self) -> Option<Vec<(FunctionName, Lasting)>> {
        let shelf = self.0.lock();
        let mut any = false;
        let lasting = |(function, entry): (&FunctionName, &Entry)| {
            let (lasting, is_news) = entry.history.lasting();
            any |= is_news;
            (function.clone(), lasting)
        };
        let all: Vec<_> = shelf.by_function.iter().map(lasting).collect();
        any.then_some(all)
    }
}

impl Shelf {
    fn insert(&mut self, function: FunctionName, history: History) -> Arc<History> {
        if self.by_function.len() >= MOST {
            let unused =
                self.by_function.iter().filter(|(_, e)| Arc::strong_count(&e.history) == 1);
            let oldest = unused.min_by_key(|(_, entry)| entry.asked).map(|(name, _)| name.clone());
            oldest.map(|name| self.by_function.remove(&name));
        }
        let history = Arc::new(history);
        let entry = Entry { history: Arc::clone(&history), asked: self.asked };
        self.by_function.insert(function, entry);
        history
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::state::Moment;

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
        let shelf = histories.0.lock();
        assert_eq!(shelf.by_function.len(), MOST);
        let has = |n| shelf.by_function.contains_key(&name(n));
        assert!(has(0) && has(1) && !has(2) && has(MOST));
        drop(used);
    }

    #[test]
    fn history_outlives_a_version_but_not_its_function() {
        let histories = Histories::default();
        let first = histories.of(&name(1));
        first.rests(Moment::ZERO);
        first.begins(Moment::from_secs(60));
        assert!(histories.of(&name(1)).has_samples());
        histories.forget(&name(1));
        assert!(!histories.of(&name(1)).has_samples());
    }

    #[test]
    fn changes_are_reported_once() {
        let histories = Histories::default();
        let one = histories.of(&name(1));
        assert_eq!(histories.news(), None);
        one.rests(Moment::ZERO);
        one.arrives(Moment::from_secs(60));
        let told = histories.news().unwrap();
        assert_eq!(histories.news(), None);
        assert!(Histories::recall(told).of(&name(1)).has_samples());
    }
}
