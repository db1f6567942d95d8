//! Deployments of one project go one after another, in the order in which they came in.

use super::story::Story;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};
use tokio::sync::OwnedMutexGuard;

/// Who waits for whom. Nothing is kept of projects that nobody deploys.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    lanes: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// The right to go on; the next one's when it is dropped.
pub(crate) type Turn = OwnedMutexGuard<()>;

impl Queue {
    /// Waits for those that came before. Bounded by the deployment's own limit.
    pub(crate) async fn wait(&self, lane: String, story: &Story) -> Turn {
        let mutex = {
            let mut lanes = self.lanes.lock();
            lanes.retain(|_, mutex| mutex.strong_count() > 0);
            match lanes.get(&lane).and_then(Weak::upgrade) {
                Some(mutex) => mutex,
                None => {
                    let mutex = Arc::default();
                    lanes.insert(lane.clone(), Arc::downgrade(&mutex));
                    mutex
                }
            }
        };
        if let Ok(turn) = Arc::clone(&mutex).try_lock_owned() {
            return turn;
        }
        story.line(format!("waiting for an earlier deployment of {lane}"));
        mutex.lock_owned().await // tokio's mutex is fair: first come, first served
    }
}
