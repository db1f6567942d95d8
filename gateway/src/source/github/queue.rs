//! Webhook deployments of one project: one runs, one waits. A newer one replaces the waiting one,
//! which is reported; the running one continues to its end. So a project with bursts of pushes
//! costs two deployments, and the last push is the one that serves in the end.

use epsilon_api::ids::ProjectName;
use parking_lot::Mutex;
use std::collections::HashMap;

/// The waiting job per project. A project is in the map while one of its jobs runs.
#[derive(Debug)]
pub(crate) struct ProjectQueues<J>(Mutex<HashMap<ProjectName, Option<J>>>);

/// The result of queueing a job.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Enqueued<J> {
    /// No job runs: start this one, and ask for the next one when it is done.
    Begin(J),
    /// It waits, and has replaced this one.
    Waits(Option<J>),
}

impl<J> ProjectQueues<J> {
    pub(crate) fn new() -> Self {
        Self(Mutex::default())
    }

    /// Queues a job.
    pub(crate) fn enqueue(&self, project: &ProjectName, job: J) -> Enqueued<J> {
        let mut queues = self.0.lock();
        match queues.get_mut(project) {
            Some(waiting) => Enqueued::Waits(waiting.replace(job)),
            None => {
                queues.insert(project.clone(), None);
                Enqueued::Begin(job)
            }
        }
    }

    /// Called when the running job is done: returns the next one. With none, the lane is removed.
    pub(crate) fn next(&self, project: &ProjectName) -> Option<J> {
        let mut queues = self.0.lock();
        let next = queues.get_mut(project).and_then(Option::take);
        if next.is_none() {
            queues.remove(project);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_works_one_waits_and_the_newest_wins() {
        let queues = ProjectQueues::new();
        let shop = ProjectName::parse("shop").unwrap();
        assert_eq!(queues.enqueue(&shop, 1), Enqueued::Begin(1));
        assert_eq!(queues.enqueue(&shop, 2), Enqueued::Waits(None));
        assert_eq!(queues.enqueue(&shop, 3), Enqueued::Waits(Some(2)));
        assert_eq!(queues.enqueue(&shop, 4), Enqueued::Waits(Some(3)));
        assert_eq!(queues.next(&shop), Some(4));
        assert_eq!(queues.enqueue(&shop, 5), Enqueued::Waits(None));
        assert_eq!(queues.next(&shop), Some(5));
        assert_eq!(queues.next(&shop), None);
        assert_eq!(queues.enqueue(&shop, 6), Enqueued::Begin(6));
    }

    #[test]
    fn projects_do_not_wait_for_each_other() {
        let queues = ProjectQueues::new();
        for name in ["shop", "blog"] {
            let project = ProjectName::parse(name).unwrap();
            assert_eq!(queues.enqueue(&project, name), Enqueued::Begin(name));
        }
    }
}
