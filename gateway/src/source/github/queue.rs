//! Webhook deployments of one project: one runs, one waits. A newer one replaces the waiting one,
//! which is reported; the running one continues to its end. So a project with bursts of pushes
//! costs two deployments, and the last push is the one that serves in the end.

use epsilon_api::ids::ProjectName;
use parking_lot::Mutex;
use std::collections::HashMap;

/// The waiting job per project. A project is in the map while one of its jobs runs.
#[derive(Debug)]
pub(crate) struct Lanes<J>(Mutex<HashMap<ProjectName, Option<J>>>);

/// The result of queueing a job.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Placed<J> {
    /// No job runs: start this one, and ask for the next one when it is done.
    Begin(J),
    /// It waits, and has replaced this one.
    Waits(Option<J>),
}

impl<J> Lanes<J> {
    pub(crate) fn new() -> Self {
        Self(Mutex::default())
    }

    /// Queues a job.
    pub(crate) fn place(&self, project: &ProjectName, job: J) -> Placed<J> {
        let mut lanes = self.0.lock();
        match lanes.get_mut(project) {
            Some(waiting) => Placed::Waits(waiting.replace(job)),
            None => {
                lanes.insert(project.clone(), None);
                Placed::Begin(job)
            }
        }
    }

    /// Called when the running job is done: returns the next one. With none, the lane is removed.
    pub(crate) fn next(&self, project: &ProjectName) -> Option<J> {
        let mut lanes = self.0.lock();
        let next = lanes.get_mut(project).and_then(Option::take);
        if next.is_none() {
            lanes.remove(project);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_works_one_waits_and_the_newest_wins() {
        let lanes = Lanes::new();
        let shop = ProjectName::parse("shop").unwrap();
        assert_eq!(lanes.place(&shop, 1), Placed::Begin(1));
        assert_eq!(lanes.place(&shop, 2), Placed::Waits(None));
        assert_eq!(lanes.place(&shop, 3), Placed::Waits(Some(2)));
        assert_eq!(lanes.place(&shop, 4), Placed::Waits(Some(3)));
        assert_eq!(lanes.next(&shop), Some(4));
        assert_eq!(lanes.place(&shop, 5), Placed::Waits(None));
        assert_eq!(lanes.next(&shop), Some(5));
        assert_eq!(lanes.next(&shop), None);
        assert_eq!(lanes.place(&shop, 6), Placed::Begin(6));
    }

    #[test]
    fn projects_do_not_wait_for_each_other() {
        let lanes = Lanes::new();
        for name in ["shop", "blog"] {
            let project = ProjectName::parse(name).unwrap();
            assert_eq!(lanes.place(&project, name), Placed::Begin(name));
        }
    }
}
