//! Fourth phase: which VM. A choice and nothing else: it looks at the fleet, sends nothing and
//! remembers nothing. The consistent-hash ring with bounded loads takes this trait's place with the fleet.

use crate::fleet::{Member, Snapshot};
use epsilon_api::ids::FunctionName;
use std::{fmt, sync::Arc};

/// Where a call may go.
pub(crate) trait Placement: Send + Sync + fmt::Debug {
    /// The VM to try as number `attempt` (from 0) for this function; `None` when there is no further one.
    /// Different attempts never get the same VM.
    fn choose(
        &self,
        function: &FunctionName,
        fleet: &Snapshot,
        attempt: usize,
    ) -> Option<Arc<Member>>;
}

/// The VMs in their order: right for one, enough to prove the walk.
#[derive(Debug)]
pub(crate) struct InOrder;

impl Placement for InOrder {
    fn choose(&self, _: &FunctionName, fleet: &Snapshot, attempt: usize) -> Option<Arc<Member>> {
        fleet.members().iter().filter(|member| member.takes_calls()).nth(attempt).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fleet::Fleet, testing::FakeVm};

    #[test]
    fn a_draining_vm_is_passed_over() {
        let fleet = Fleet::new([FakeVm::arc("a"), FakeVm::arc("b"), FakeVm::arc("c")]);
        fleet.members()[1].drain(true);
        let name = FunctionName::parse("pay").unwrap();
        let chosen =
            |attempt| InOrder.choose(&name, &fleet.snapshot(), attempt).map(|vm| vm.id.to_string());
        assert_eq!([chosen(0), chosen(1), chosen(2)], [Some("a".into()), Some("c".into()), None]);
    }
}
