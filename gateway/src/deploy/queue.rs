//! Makes deployments of one project run one after another, in the order of their arrival.

use super::progress::Progress;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};
use tokio::sync::OwnedMutexGuard;

/// One lane per project that is being deployed; unused lanes are dropped.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    lanes: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// The right to continue; passes to the next deployment on drop.
pub(crate) type Turn = OwnedMutexGuard<()>;

impl Queue {
    /// Waits for earlier deployments. Bounded by the deployment's own time limit.
    pub(crate) async fn wait(&self, lane: String, progress: &Progress) -> Turn {
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
        progress.line(format!("waiting for an earlier deployment of {lane}"));
        mutex.lock_owned().await // tokio's mutex is fair: first in, first out
    }
}
