//! Waiting for a condition: with a limit, and with the last status in the failure's text. Tests
//! wait in no other way.

use std::{fmt::Debug, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// Polling interval.
const PAUSE: Duration = Duration::from_millis(25);

/// Limit for things that should take no time, generous for a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Limit for work with images and packages.
pub const LONG: Duration = Duration::from_secs(180);

/// Polls until `probe` returns a value.
///
/// # Panics
/// After `limit`, with the last status of `probe`.
pub async fn until<T, S: Debug>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, S>,
) -> T {
    let end = Instant::now() + limit;
    loop {
        let status = match probe().await {
            Ok(value) => return value,
            Err(status) => status,
        };
        assert!(Instant::now() < end, "{what}: not within {limit:?}; last status: {status:?}");
        sleep(PAUSE).await;
    }
}

/// The value of `work`.
///
/// # Panics
/// When it takes longer than `limit`.
pub async fn within<T>(what: &str, limit: Duration, work: impl Future<Output = T>) -> T {
    match timeout(limit, work).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {limit:?}"),
    }
}
