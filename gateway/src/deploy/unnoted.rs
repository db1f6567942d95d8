//! A failed deployment that the store could not be told of: told again behind, until it is. Otherwise it would stand as running,
//! and be waited for, until this gateway starts again. Not the telling itself: that is `Deploys::run`, which calls this when it went wrong.

use epsilon_api::{error::ErrorBody, ids::DeploymentId};
use epsilon_store::{Store, StoreError};
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// Pauses between two attempts; the store has just been asked in vain.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A store that is away for longer has more to mend than this; the next start of the gateway fails the deployment.
const GIVE_UP: Duration = Duration::from_secs(24 * 3600);

/// Returns at once. What is left of it ends with the gateway.
pub(super) fn tell_again(store: Arc<dyn Store>, id: DeploymentId, error: ErrorBody) {
    let ended = Timestamp::now();
    tokio::spawn(async move {
        let told = until_told(|| store.fail_deployment(&id, &error, ended)).await;
        tracing::info!(deployment = %id, told, "Its failure is noted after all, or given up.");
    });
}

/// Whether the store knows by now that the deployment is over.
async fn until_told<F>(mut tell: impl FnMut() -> F) -> bool
where
    F: Future<Output = Result<(), StoreError>>,
{
    let end = Instant::now() + GIVE_UP;
    let mut pause = FIRST_PAUSE;
    while Instant::now() < end {
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        match tell().await {
            Ok(()) => return true,
            // An attempt whose answer was lost, or another gateway that took this one for dead.
            Err(StoreError::DeploymentOver(_) | StoreError::DeploymentNotFound(_)) => return true,
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

    /// After how many attempts and seconds it ends, and how, when the store says this in turn, the last of it for ever.
    async fn told(answers: &[fn() -> Result<(), StoreError>]) -> (usize, u64, bool) {
        let (began, mut attempts) = (Instant::now(), 0);
        let told = until_told(|| {
            attempts += 1;
            ready(answers[attempts.min(answers.len()) - 1]())
        })
        .await;
        (attempts, began.elapsed().as_secs(), told)
    }

    fn away() -> Result<(), StoreError> {
        Err(StoreError::FunctionNotFound(FunctionName::parse("any").unwrap()))
    }

    fn over() -> Result<(), StoreError> {
        Err(StoreError::DeploymentOver(DeploymentId::random()))
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_told_until_the_store_knows_and_not_for_ever() {
        assert_eq!(told(&[|| Ok(())]).await, (1, 1, true));
        assert_eq!(told(&[away, away, away, || Ok(())]).await, (4, 15, true));
        assert_eq!(told(&[away, over]).await, (2, 3, true));
        let (attempts, seconds, told) = told(&[away]).await;
        assert!((1440..1450).contains(&attempts) && seconds >= 24 * 3600 && !told);
    }
}
