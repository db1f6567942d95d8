//! The task that hears what any gateway changed, over one connection of its own.
//!
//! In: PostgreSQL's notifications. Out: [`Changes`]. Ends when it is aborted. What is told while the connection is
//! down is lost, so whoever listens is told to read everything again as soon as it is back.

use crate::{Change, StoreError, changes::Changes, sql::CHANNEL};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

/// How long an attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(2);
/// The pause between attempts.
const PAUSE: Duration = Duration::from_millis(500);
/// After so long without news the connection is tried: a link that was cut says nothing of itself.
const QUIET: Duration = Duration::from_secs(5);
/// How long the server may take to answer to that.
const ANSWER: Duration = Duration::from_secs(3);

/// Listens before it returns, then for as long as the handle lives.
pub(super) async fn spawn(
    options: PgConnectOptions,
    changes: Changes,
) -> Result<AbortOnDropHandle<()>, StoreError> {
    let first = connect(&options).await?;
    let task = async move {
        let mut next = Some(first);
        loop {
            if let Some(listener) = next.take() {
                let err = hear(listener, &changes).await;
                tracing::warn!(error = %err, "Changes of other gateways are not heard any more.");
            }
            match connect(&options).await {
                Ok(listener) => {
                    tracing::info!("Changes of other gateways are heard again.");
                    changes.tell(Change::Resync);
                    next = Some(listener);
                }
                Err(err) => {
                    tracing::debug!(error = %err, "The store does not answer.");
                    sleep(PAUSE).await;
                }
            }
        }
    };
    Ok(AbortOnDropHandle::new(tokio::spawn(task)))
}

/// A pool of one, because that is what a listener is made from; a new one each time, so that a connection
/// which hangs is not waited for.
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

/// Passes on what comes until the connection is lost; says why.
async fn hear(mut listener: PgListener, changes: &Changes) -> sqlx::Error {
    loop {
        // Cancel-safe: what was read of a message stays in the connection's buffer.
        match timeout(QUIET, listener.try_recv()).await {
            Ok(Ok(Some(told))) => {
                // A word of a later release: something changed.
                changes.tell(Change::read(told.payload()).unwrap_or(Change::Resync));
            }
            Ok(Ok(None)) => return sqlx::Error::PoolClosed,
            Ok(Err(err)) => return err,
            Err(_) => {
                let answer = timeout(ANSWER, sqlx::query("SELECT 1").execute(&mut listener));
                match answer.await {
                    Ok(Ok(_)) => {}
                    Ok(Err(err)) => return err,
                    Err(_) => return sqlx::Error::PoolTimedOut,
                }
            }
        }
    }
}
