//! After a 101: copies bytes both ways between gateway and function, until one of them ends it, the
//! function's `timeout` runs out, or the agent ends. The only task that a gateway's call ever gets,
//! because the call outlives its connection's HTTP.

use crate::vm::LocalVm;
use epsilon_api::{chain::Chain, vm::Held};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::{error::Error, sync::Arc, time::Duration};
use tokio::{io::copy_bidirectional, time::timeout};

pub(super) struct Tunnel {
    pub(super) gateway: OnUpgrade,
    pub(super) function: OnUpgrade,
    /// Holds the lease on the instance.
    pub(super) held: Option<Held>,
    /// What is left of the function's `timeout`.
    pub(super) left: Duration,
    pub(super) vm: Arc<LocalVm>,
}

impl Tunnel {
    /// Starts copying once the 101 was written.
    pub(super) fn open(self) {
        let Self { gateway, function, held, left, vm } = self;
        let closed = vm.closed.clone();
        vm.spawn(async move {
            let copy = async {
                let (gateway, function) = tokio::try_join!(gateway, function)?;
                let (mut gateway, mut function) = (TokioIo::new(gateway), TokioIo::new(function));
                copy_bidirectional(&mut gateway, &mut function).await?;
                Ok::<_, Box<dyn Error + Send + Sync>>(())
            };
            // Both arms end the tunnel, so dropping the other one is intended.
            tokio::select! {
                biased; // a tunnel that ended by itself is complete, even when the agent ends as well
                copied = timeout(left, copy) => match copied {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(error = %Chain(&*error), "Upgraded stream broke."),
                    Err(_) => tracing::debug!(?left, "Upgraded stream reached the function's timeout."),
                },
                () = closed.cancelled() => {}
            }
            drop(held);
        });
    }
}
