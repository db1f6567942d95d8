//! Single flight: one attempt at a time for all callers that need the same thing. Callers that wait
//! while an attempt runs share its outcome: the thing exists, or all of them fail with the one
//! error. Later callers try again. So a hundred calls that need one image, or one VM to know one
//! version, request it once, and a peer that hangs costs them one wait and not a hundred.
//!
//! Not a cache: the caller knows whether the thing exists. Used by the gateway (versions known to
//! VMs) and by the agent (images).

use parking_lot::Mutex;
use std::{collections::HashMap, fmt, hash::Hash, sync::Arc};

/// Attempts in flight by key. An entry exists while a caller wants it.
pub struct SingleFlight<K, E> {
    in_flight: Mutex<HashMap<K, Arc<Entry<E>>>>,
}

struct Entry<E> {
    turn: tokio::sync::Mutex<()>,
    /// Count of failed attempts, and the error of the last one.
    failed: Mutex<(u64, Option<Arc<E>>)>,
}

/// A caller that wants the thing. The last one removes the entry, whatever the outcome.
struct Waiter<'a, K: Hash + Eq, E> {
    all: &'a SingleFlight<K, E>,
    key: K,
    entry: Arc<Entry<E>>,
}

impl<K, E> Default for SingleFlight<K, E> {
    fn default() -> Self {
        Self { in_flight: Mutex::default() }
    }
}

impl<K, E> fmt::Debug for SingleFlight<K, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SingleFlight").field("in_flight", &self.in_flight.lock().len()).finish()
    }
}

impl<K: Hash + Eq + Clone, E> SingleFlight<K, E> {
    /// Makes the thing unless it exists. `existing` returns it if it exists; `make` makes it, and
    /// its success must show in `existing`. An attempt whose future is dropped has no outcome: the
    /// next waiting caller makes its own.
    ///
    /// # Errors
    /// The error of the attempt, for all callers that waited for it.
    pub async fn ensure<T>(
        &self,
        key: &K,
        existing: impl Fn() -> Option<T>,
        make: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Arc<E>> {
        let waiter = self.waiter(key);
        let seen = waiter.entry.failed.lock().0;
        let _turn = waiter.entry.turn.lock().await;
        if let Some(thing) = existing() {
            return Ok(thing);
        }
        {
            let failed = waiter.entry.failed.lock();
            if let (count, Some(err)) = &*failed
                && *count > seen
            {
                return Err(Arc::clone(err));
            }
        }
        make.await.map_err(|err| {
            let err = Arc::new(err);
            let mut failed = waiter.entry.failed.lock();
            *failed = (failed.0 + 1, Some(Arc::clone(&err)));
            err
        })
    }

    /// Runs `work` while no attempt for this key runs. Its outcome is not shared.
    pub async fn exclusive<T>(&self, key: &K, work: impl Future<Output = T>) -> T {
        let waiter = self.waiter(key);
        let _turn = waiter.entry.turn.lock().await;
        work.await
    }

    fn waiter(&self, key: &K) -> Waiter<'_, K, E> {
        let mut in_flight = self.in_flight.lock();
        let entry = in_flight.entry(key.clone()).or_insert_with(|| {
            Arc::new(Entry { turn: tokio::sync::Mutex::new(()), failed: Mutex::new((0, None)) })
        });
        Waiter { all: self, key: key.clone(), entry: Arc::clone(entry) }
    }
}

impl<K: Hash + Eq, E> Drop for Waiter<'_, K, E> {
    fn drop(&mut self) {
        let mut in_flight = self.all.in_flight.lock();
        // The map's reference and ours: no other caller waits, and none can arrive while the map is
        // locked.
        if Arc::strong_count(&self.entry) == 2 {
            in_flight.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, future::join_all};
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use tokio::sync::Semaphore;

    /// A thing that can be made once its gate is open.
    #[derive(Default)]
    struct Thing {
        together: SingleFlight<&'static str, String>,
        existing: Mutex<Option<u32>>,
        attempts: AtomicU32,
        gate: Option<Semaphore>,
    }

    impl Thing {
        fn closed() -> Self {
            Self { gate: Some(Semaphore::new(0)), ..Self::default() }
        }

        async fn get(&self, works: bool) -> Result<u32, String> {
            let make = async {
                let attempt = self.attempts.fetch_add(1, Relaxed) + 1;
                if let Some(gate) = &self.gate {
                    gate.acquire().await.unwrap().forget();
                }
                if !works {
                    return Err(format!("attempt {attempt}"));
                }
                *self.existing.lock() = Some(attempt);
                Ok(attempt)
            };
            self.together
                .ensure(&"it", || *self.existing.lock(), make)
                .await
                .map_err(|err| (*err).clone())
        }

        fn open(&self) {
            self.gate.as_ref().unwrap().add_permits(1);
        }

        fn is_forgotten(&self) -> bool {
            self.together.in_flight.lock().is_empty()
        }
    }

    #[tokio::test]
    async fn all_get_what_one_makes() {
        let thing = Thing::default();
        let all = join_all((0..5).map(|_| thing.get(true))).await;
        assert!(all.iter().all(|one| *one == Ok(1)), "{all:?}");
        assert!(thing.is_forgotten());
    }

    #[tokio::test]
    async fn waiting_callers_share_failure_later_ones_retry() {
        let thing = Thing::closed();
        let first = join_all((0..5).map(|_| thing.get(false)));
        let mut first = std::pin::pin!(first);
        assert!(first.as_mut().now_or_never().is_none());
        thing.open();
        let first = first.await;
        assert!(first.iter().all(|one| *one == Err("attempt 1".into())), "{first:?}");
        thing.open();
        assert_eq!(thing.get(true).await, Ok(2));
        assert!(thing.is_forgotten());
    }

    #[tokio::test]
    async fn caller_after_a_failure_does_not_share_it() {
        let thing = Thing::closed();
        let mut first = Box::pin(thing.get(false));
        let mut waits = Box::pin(thing.get(false));
        assert!(first.as_mut().now_or_never().is_none() && waits.as_mut().now_or_never().is_none());
        thing.open();
        assert_eq!(first.await, Err("attempt 1".into()));
        let mut late = Box::pin(thing.get(true));
        assert!(late.as_mut().now_or_never().is_none(), "it waits for the running attempt");
        assert_eq!(waits.await, Err("attempt 1".into()));
        thing.open();
        assert_eq!(late.await, Ok(2));
        assert!(thing.is_forgotten());
    }

    #[tokio::test]
    async fn exclusive_work_waits_and_does_not_share_failure() {
        let thing = Thing::closed();
        let mut first = Box::pin(thing.get(true));
        assert!(first.as_mut().now_or_never().is_none());
        let took = || async { thing.existing.lock().take() };
        let mut alone = Box::pin(thing.together.exclusive(&"it", took()));
        assert!(alone.as_mut().now_or_never().is_none());
        let mut waits = Box::pin(thing.get(true));
        assert!(waits.as_mut().now_or_never().is_none());
        thing.open();
        assert_eq!((first.await, alone.await), (Ok(1), Some(1)));
        thing.open();
        assert_eq!(waits.await, Ok(2), "what was removed meanwhile is made again");
        assert!(thing.is_forgotten());
    }

    #[tokio::test]
    async fn dropped_attempt_is_made_by_the_next_caller() {
        let thing = Thing::closed();
        let mut first = Box::pin(thing.get(true));
        let mut waits = Box::pin(thing.get(true));
        assert!(first.as_mut().now_or_never().is_none() && waits.as_mut().now_or_never().is_none());
        drop(first); // its caller hung up
        thing.open();
        assert_eq!(waits.await, Ok(2));
        assert!(thing.is_forgotten());
    }
}
