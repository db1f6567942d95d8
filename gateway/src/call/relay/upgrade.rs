//! After a 101: copies bytes in both directions between caller and function until one of them
//! closes, the function's `timeout` is over, or the gateway stops. The only task that a call ever
//! gets, because the tunnel outlives the connection's HTTP.

use crate::call::reply::CallRecord;
use epsilon_api::{chain::Chain, vm::Held};
use epsilon_http_server::Connection;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Both ends of an upgraded call, and the guards that it holds until its end.
pub(crate) struct Tunnel {
    pub(crate) caller: OnUpgrade,
    pub(crate) function: OnUpgrade,
    /// The lease on the instance.
    pub(crate) held: Option<Held>,
    /// The rest of the function's `timeout`.
    pub(crate) left: Duration,
    /// Cancelled when the gateway shuts down.
    pub(crate) stop: CancellationToken,
    /// Counts the call until its last byte.
    pub(crate) record: CallRecord,
    /// Counts as a connection until its last byte, although hyper has dropped the connection.
    pub(crate) connection: Arc<Connection>,
}

impl Tunnel {
    /// Starts copying once hyper has written the 101.
    pub(crate) fn open(self) {
        tokio::spawn(self.run());
    }

    async fn run(self) {
        let Self { caller, function, held, left, stop, mut record, connection } = self;
        let copy = async {
            let (caller, function) = tokio::try_join!(caller, function)?;
            connection.upgraded();
            let mut caller = TokioIo::new(caller);
            let mut function = TokioIo::new(function);
            let copied = tokio::io::copy_bidirectional(&mut caller, &mut function).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(copied)
        };
        // Order: a stream that ended by itself is complete, even if the time is up as well. Every
        // arm ends the tunnel, so dropping the other futures is intended.
        tokio::select! {
            biased;
            copied = tokio::time::timeout(left, copy) => match copied {
                Ok(Ok((_, to_caller))) => record.complete(to_caller),
                Ok(Err(error)) => tracing::debug!(error = %Chain(&*error), "Upgraded stream broke off."),
                Err(_) => tracing::debug!(?left, "Upgraded stream was cut at the function's timeout."),
            },
            () = stop.cancelled() => {}
        }
        drop((held, connection));
    }
}
