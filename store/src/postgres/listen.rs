//! The task that receives the changes of all gateways, over one connection of its own.
//!
//! In: PostgreSQL's notifications. Out: [`Changes`]. Ends when it is aborted. Notifications during
//! an outage are lost, so listeners get [`Change::Resync`] as soon as the connection is back.

use crate::{Change, StoreError, changes::Changes, sql::CHANNEL};
use epsilon_api::chain::Chain;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

/// Time limit of an attempt to connect.
const CONNECT: Duration = Duration::from_secs(2);
/// The pause between attempts.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);
/// After this long without a notification the connection is probed: a cut link does not report
/// itself.
const PROBE_AFTER: Duration = Duration::from_secs(5);
/// Time limit of the probe's answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Listening when it returns, and as long as the handle exists.
pub(super) async fn spawn(
    options: PgConnectOptions,
    changes: Changes,
) -> Result<AbortOnDropHandle<()>, StoreError> {
    let first = connect(&options).await?;
    let task = async move {
        let mut next = Some(first);
        loop {
            if let Some(listener) = next.take() {
                let err = forward_until_lost(listener, &changes).await;
                tracing::warn!(error = %Chain(&err), "Connection for store notifications lost; reconnecting.");
            }
            match connect(&options).await {
                Ok(listener) => {
                    tracing::info!(
                        "Connection for store notifications restored; reading everything again."
                    );
                    changes.announce(Change::Resync);
                    next = Some(listener);
                }
                Err(err) => {
                    tracing::debug!(error = %Chain(&err), "Store does not answer; trying again to listen for notifications.");
                    sleep(RECONNECT_PAUSE).await;
                }
            }
        }
    };
    Ok(AbortOnDropHandle::new(tokio::spawn(task)))
}

/// Connects with a pool of one, which a listener is made from; a new pool each time, so that a
/// connection that hangs is not waited for.
async fn connect(options: &PgConnectOptions) -> Result<PgListener, sqlx::Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(CONNECT)
        .connect_lazy_with(options.clone());
    let listen = async {
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok(listener)
    };
    timeout(CONNECT, listen).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// Passes notifications on until the connection is lost; returns why.
async fn forward_until_lost(mut listener: PgListener, changes: &Changes) -> sqlx::Error {
    loop {
        // Cancel-safe: a partly read message stays in the connection's buffer.
        match timeout(PROBE_AFTER, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => {
                // An unknown notification of a later release: something changed.
                changes.announce(Change::read(notification.payload()).unwrap_or(Change::Resync));
            }
            Ok(Ok(None)) => return sqlx::Error::PoolClosed,
            Ok(Err(err)) => return err,
            Err(_) => {
                let answer = timeout(PROBE_TIMEOUT, sqlx::query("SELECT 1").execute(&mut listener));
                match answer.await {
                    Ok(Ok(_)) => {}
                    Ok(Err(err)) => return err,
                    Err(_) => return sqlx::Error::PoolTimedOut,
                }
            }
        }
    }
}
