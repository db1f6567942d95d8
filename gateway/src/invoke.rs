//! One invocation of a function: which VM, the attempt there, and whether another VM may be tried.
//! [`Invoker::invoke`] is the only place that sends calls to VMs, and holds the only retry loop of
//! the program. It knows nothing of connections or listeners: the public listener (`call.rs`) is
//! its first user.
//!
//! | file | what it is |
//! |---|---|
//! | `place` | which VM: the rules of `placement/`, applied to the fleet |
//! | `outgoing` | a call that can be sent to one VM after the other |
//! | `replay` | its body, for one VM after the other |
//! | `retry` | whether another VM may be tried, and how often |

pub(crate) mod outgoing;
pub(crate) mod place;
pub(crate) mod replay;
pub(crate) mod retry;

use crate::{
    config::Config,
    fleet::{Fleet, load::InFlightGuard},
    observe::metrics::Metrics,
    reconcile::prewarm::Prewarmer,
    routes::Route,
};
use epsilon_api::{chain::Chain, error::VmError, vm::Answer};
use epsilon_placement::bounded_load::Balance;
use outgoing::Outgoing;
use place::Placed;
use retry::{Attempts, Failure, budget::Budget};
use std::sync::Arc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Sends calls to VMs.
#[derive(Debug)]
pub(crate) struct Invoker {
    fleet: Arc<Fleet>,
    balance: Balance,
    /// VMs on which one call is tried at most.
    max_tries: usize,
    budget: Budget,
    prewarmer: Prewarmer,
    metrics: Arc<Metrics>,
}

/// An answer, and the guard that counts its call in the VM's load.
pub(crate) struct Invoked {
    pub(crate) answer: Answer,
    pub(crate) in_flight: InFlightGuard,
}

impl Invoker {
    /// `stop`: ends prewarms at the gateway's shutdown.
    pub(crate) fn new(
        config: &Config,
        fleet: Arc<Fleet>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            fleet,
            balance: config.balance,
            max_tries: config.max_tries,
            budget: Budget::new(config.retries, Instant::now()),
            prewarmer: Prewarmer::new(stop),
            metrics,
        }
    }

    /// Sends the call to one VM after the other until one answers. `retry.rs` and the budget decide
    /// whether there is another attempt; an attempt after a possible execution gets only the rest
    /// of the function's `timeout`.
    ///
    /// # Errors
    /// The last VM's error, or `NoCapacity` where there is none. Dropping the future ends the call.
    pub(crate) async fn invoke(
        &self,
        route: &Arc<Route>,
        mut call: Outgoing,
    ) -> Result<Invoked, VmError> {
        self.budget.call();
        let mut tries = Attempts::new(route, call.method());
        let upload = call.upload().cloned();
        let mut failed: Option<VmError> = None;
        loop {
            let (placed, is_only_vm) = {
                let fleet = self.fleet.snapshot();
                let placed =
                    place::place(&fleet, route, &tries.vms, &self.balance, &self.metrics.placement);
                (placed, fleet.members().len() == 1)
            };
            let Some(Placed { member, in_flight, has_other_vm, prewarm }) = placed else {
                return Err(failed.map_or_else(|| no_vm(route), outgoing::map_error));
            };
            if let Some((prewarm, member)) = prewarm {
                self.prewarmer.begin(prewarm, member, route, &self.metrics.placement);
            }
            let is_last = is_only_vm || tries.vms.len() + 1 >= self.max_tries;
            let (sent, rest) = if is_last {
                (call.last().ok_or_else(body_used_up)?, None)
            } else {
                let (lent, rest) = call.lend(!has_other_vm).ok_or_else(body_used_up)?;
                (lent, Some(rest))
            };
            let result = tries.in_time(route, member.vm.call(sent)).await;
            let err = match result {
                Ok(answer) => {
                    if let Some(upload) = upload {
                        upload.answered();
                    }
                    place::record_outcome(&member, route, None);
                    return Ok(Invoked { answer, in_flight: in_flight.answered() });
                }
                Err(err) => err,
            };
            // The call stops counting on this VM before the error is recorded there:
            // `record_outcome` judges the VM by the load of its other calls.
            drop(in_flight);
            place::record_outcome(&member, route, Some(&err));
            // A VM that could have queued the call has already done so; another one would only
            // queue it again.
            let waited = !has_other_vm && Failure::of(&err) == Failure::Refused;
            let rest = rest.filter(|_| !waited);
            let can_resend_body = rest.as_ref().is_none_or(Outgoing::is_whole);
            match (tries.again(&err, can_resend_body, rest.is_some(), &self.budget), rest) {
                (Some(Ok(retry)), Some(rest)) => {
                    self.metrics.placement.retried(retry);
                    let function = &route.version.function;
                    let vm = &member.id;
                    let error = Chain(&err);
                    tracing::debug!(%function, %vm, %error, "Call failed on a VM; retrying on the next one.");
                    tries.vms.push(member);
                    (call, failed) = (rest, Some(err));
                }
                (verdict, _) => {
                    if let Some(Err(denied)) = verdict.filter(|_| !is_only_vm) {
                        self.metrics.placement.denied(denied);
                    }
                    return Err(outgoing::map_error(err));
                }
            }
        }
    }
}

fn no_vm(route: &Route) -> VmError {
    VmError::NoCapacity {
        function: route.version.function.clone(),
        cause: "no VM takes calls".into(),
    }
}

fn body_used_up() -> VmError {
    VmError::Internal("a VM consumed the body and then refused the call".into())
}
