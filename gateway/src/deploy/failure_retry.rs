//! Retries to record a failed deployment in the store, in the background. Without the record the
//! deployment would count as running, and be waited for, until this gateway restarts. The first
//! attempt is in `Deploys::run`, which calls this if it fails.

use epsilon_api::{error::ErrorBody, ids::DeploymentId};
use epsilon_store::{DeploymentStore, StoreError};
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// Pauses between attempts; the first attempt has just failed.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// When to give up. If the store is down for longer, the next start of the gateway records the
/// failure.
const GIVE_UP: Duration = Duration::from_secs(24 * 3600);

/// Starts the retries and returns at once. They end with the gateway.
pub(super) fn retry_recording(store: Arc<dyn DeploymentStore>, id: DeploymentId, error: ErrorBody) {
    let ended = Timestamp::now();
    tokio::spawn(async move {
        let recorded = until_recorded(|| store.fail_deployment(&id, &error, ended)).await;
        tracing::info!(deployment = %id, recorded, "Retries to record a failed deployment ended.");
    });
}

/// Retries until the store has recorded the end of the deployment; `false` if it gives up.
async fn until_recorded<F>(mut record: impl FnMut() -> F) -> bool
where
    F: Future<Output = Result<(), StoreError>>,
{
    let end = Instant::now() + GIVE_UP;
    let mut pause = FIRST_PAUSE;
    while Instant::now() < end {
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        match record().await {
            Ok(()) => return true,
            // An attempt whose answer was lost, or another gateway that considered this one dead.
            Err(StoreError::DeploymentEnded(_) | StoreError::DeploymentNotFound(_)) => return true,
            Err(_) => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use epsilon_api::ids::FunctionName;
    use std::future::ready;

    /// Number of attempts, seconds and result if the store answers this in turn, repeating the last
    /// answer.
    async fn recording_of(answers: &[fn() -> Result<(), StoreError>]) -> (usize, u64, bool) {
        let began = Instant::now();
        let mut attempts = 0;
        let recorded = until_recorded(|| {
            attempts += 1;
            ready(answers[attempts.min(answers.len()) - 1]())
        })
        .await;
        (attempts, began.elapsed().as_secs(), recorded)
    }

    fn unavailable() -> Result<(), StoreError> {
        Err(StoreError::FunctionNotFound(FunctionName::parse("any").unwrap()))
    }

    fn over() -> Result<(), StoreError> {
        Err(StoreError::DeploymentEnded(DeploymentId::random()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_retried_until_recorded_or_expired() {
        assert_eq!(recording_of(&[|| Ok(())]).await, (1, 1, true));
        assert_eq!(
            recording_of(&[unavailable, unavailable, unavailable, || Ok(())]).await,
            (4, 15, true)
        );
        assert_eq!(recording_of(&[unavailable, over]).await, (2, 3, true));
        let (attempts, seconds, recorded) = recording_of(&[unavailable]).await;
        assert!((1440..1450).contains(&attempts) && seconds >= 24 * 3600 && !recorded);
    }
}
