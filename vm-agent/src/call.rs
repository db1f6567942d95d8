//! The agent's half of a call's path, phases top to bottom: `lease → relay → reply`.
//!
//! The only loop here moves on to another instance while nothing of the call was sent: an instance
//! may have died since it was last used. Retrying a call is the gateway's job.

pub(crate) mod relay;
pub(crate) mod reply;

use crate::vm::LocalVm;
use epsilon_api::{
    error::VmError,
    vm::{Answer, Call, Spent},
};
use relay::Outcome;
use std::sync::Arc;
use tokio::time::Instant;

/// Instances that one call may find dead before the gateway is asked to place it elsewhere. After a
/// restart of the engine all are dead, and each is tried once.
const INSTANCES_TRIED: u32 = 8;

pub(crate) async fn handle(vm: &Arc<LocalVm>, call: Call) -> Result<Answer, VmError> {
    let pool = vm.pool_for_call(&call.version)?;
    let mut request = relay::prepare(call.request, &call.request_id, &pool);
    let mut spent = Spent::default();
    for _ in 0..INSTANCES_TRIED {
        let mut lease =
            crate::instance::lease::take(&pool, &call.request_id, call.may_wait, &mut spent)
                .await?;
        lease.upload.clone_from(&call.upload);
        let handed_over = Instant::now();
        match relay::send(lease, request, &call.request_id, call.interim.as_deref()).await {
            Outcome::Answered { response, call } => {
                spent.exec = handed_over.elapsed();
                let response = reply::to_answer(response, call, &pool.version)?;
                return Ok(Answer { response, spent });
            }
            Outcome::Unsent(unsent) => request = unsent,
            Outcome::Failed(err) => return Err(err),
        }
    }
    let function = pool.version.function.clone();
    Err(VmError::NoCapacity { function, cause: "its instances do not accept connections".into() })
}
