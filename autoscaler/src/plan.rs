//! From the wanted number of VMs to steps: which VMs leave, which return, how many are ordered.
//! Pure: the group, the reports and the drains go in, [`Step`]s come out. All of its input is
//! available again after a restart, except since when a VM leaves, which restarts.
//!
//! ```text
//!            the emptiest            empty, or grace over          AWS lifecycle hook
//! serving ──────────────▶ leaving ──────────────────────▶ ended ──────────────────▶ waiting ──▶ gone
//!    ▲    unprotect, drain   │      terminate, one less               drain if it runs calls,   ▲
//!    └───────────────────────┘                                        heartbeat, then complete ─┘
//!      demand is back: undrain, protect
//! ```
//! A VM is *leaving* if it drains and is not protected: the drain is in the store, the protection
//! in the group. A VM that drains and *is* protected was drained by an operator; it is neither
//! terminated nor undrained, and a replacement is ordered.

use super::{
    driver::{Group, GroupInstance, Phase},
    history::Moment,
};
use epsilon_api::{
    ids::VmId,
    vm::{VmState, VmStatus},
};
use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    fmt,
    time::Duration,
};

/// The input of a plan.
#[derive(Debug)]
pub(crate) struct PlanInput<'a> {
    /// VMs wanted by the policy.
    pub(crate) wanted: u32,
    /// State of the group.
    pub(crate) group: &'a Group,
    /// Whether the group's protection marks outlive this gateway. If not, draining VMs leave first.
    pub(crate) keeps_marks: bool,
    /// The VMs' reports.
    pub(crate) vms: &'a [VmStatus],
    /// The VMs that drain, by the store.
    pub(crate) draining: &'a HashSet<VmId>,
    /// Since when VMs leave, as far as this gateway has observed.
    pub(crate) since: HashMap<VmId, Moment>,
    /// The current time.
    pub(crate) at: Moment,
    /// `leave_grace`.
    pub(crate) grace: Duration,
    /// [`super::config`].
    pub(crate) leaving_share: f64,
}

/// One action. Steps are carried out in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Order VMs up to this number.
    SetDesired(u32),
    /// Protect VMs from removal by the group itself, or remove the protection.
    Protect(Vec<VmId>, bool),
    /// Stop sending it new calls.
    Drain(VmId),
    /// Send it calls again.
    Undrain(VmId),
    /// Terminate it and lower the desired number by one.
    Terminate(VmId, TerminateReason),
    /// Let a VM that waits in a lifecycle hook terminate.
    Complete(VmId, TerminateReason),
    /// Extend the wait of a VM in a lifecycle hook.
    Heartbeat(VmId),
}

/// Why a VM may terminate now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TerminateReason {
    /// It runs no calls.
    Empty,
    /// Its grace period is over.
    GraceOver,
}

impl fmt::Display for TerminateReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "it is empty",
            Self::GraceOver => "its grace period is over",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetDesired(vms) => write!(f, "order VMs up to {vms}"),
            Self::Protect(vms, true) => write!(f, "protect {}", list(vms)),
            Self::Protect(vms, false) => write!(f, "unprotect {}", list(vms)),
            Self::Drain(vm) => write!(f, "drain {vm}"),
            Self::Undrain(vm) => write!(f, "undrain {vm}"),
            Self::Terminate(vm, why) => write!(f, "terminate {vm}: {why}"),
            Self::Complete(vm, why) => write!(f, "complete {vm}: {why}"),
            Self::Heartbeat(vm) => write!(f, "extend the wait of {vm}"),
        }
    }
}

fn list(vms: &[VmId]) -> String {
    let mut names: Vec<&str> = vms.iter().take(3).map(VmId::as_str).collect();
    let more = format!("{} more", vms.len().saturating_sub(3));
    if vms.len() > 3 {
        names.push(&more);
    }
    names.join(", ")
}

impl PlanInput<'_> {
    /// The next steps. If only some of them are carried out, the next plan continues from there.
    pub(crate) fn plan(&self) -> Vec<Step> {
        let mut steps = self.hook_steps();
        let wanted = self.wanted.clamp(self.group.min, self.group.max.max(self.group.min));
        let mut leaving = self.leaving();
        // The VMs that the group has and keeps, serving or starting.
        let staying = (self.group.desired as usize)
            .saturating_sub(leaving.len() + self.drained_by_operator().count());
        let wanted = wanted as usize;

        if wanted > staying {
            // The busiest return first: they have the most to lose. A VM without reports cannot be
            // undrained.
            leaving.sort_by_key(|vm| Reverse(self.fullness(&vm.id)));
            let (mut back, mut going) = (Vec::new(), Vec::new());
            for vm in leaving {
                let wake = back.len() < wanted - staying && self.status(&vm.id).is_some();
                if wake { back.push(vm) } else { going.push(vm) }
            }
            steps.extend(back.iter().map(|vm| Step::Undrain(vm.id.clone())));
            let missing = (wanted - staying - back.len()) as u32;
            let desired = self.group.desired.saturating_add(missing).min(self.group.max);
            if desired > self.group.desired {
                steps.push(Step::SetDesired(desired));
            }
            leaving = going;
            self.protect(&mut steps, back.iter().map(|vm| vm.id.clone()).collect());
        } else {
            self.protect(&mut steps, Vec::new());
            self.choose(staying - wanted, wanted, leaving.len(), &mut steps);
        }
        let mut left = self.group.desired;
        for vm in leaving {
            if let Some(over) = self.terminate_reason(&vm.id).filter(|_| left > self.group.min) {
                steps.push(Step::Terminate(vm.id.clone(), over));
                left -= 1;
            }
        }
        steps
    }

    /// Steps for VMs that the cloud terminates and that wait in a lifecycle hook.
    fn hook_steps(&self) -> Vec<Step> {
        let waiting = self.group.instances.iter().filter(|vm| vm.phase == Phase::Waiting);
        let mut steps = Vec::new();
        for GroupInstance { id, .. } in waiting {
            let runs = self.status(id).is_some_and(|vm| vm.state == VmState::Ready);
            if runs && !self.draining.contains(id) {
                steps.push(Step::Drain(id.clone()));
                steps.push(Step::Heartbeat(id.clone()));
            } else {
                steps.push(match self.terminate_reason(id) {
                    Some(over) => Step::Complete(id.clone(), over),
                    None => Step::Heartbeat(id.clone()),
                });
            }
        }
        steps
    }

    /// Whether the VM may terminate. One without reports may still run calls of other gateways.
    fn terminate_reason(&self, id: &VmId) -> Option<TerminateReason> {
        let drained = self.status(id).is_some_and(|vm| {
            vm.state == VmState::Draining && vm.calls_active == 0 && vm.calls_waiting == 0
        });
        let since = self.since.get(id).copied().unwrap_or(self.at);
        if drained {
            Some(TerminateReason::Empty)
        } else {
            (since + self.grace <= self.at).then_some(TerminateReason::GraceOver)
        }
    }

    /// Selects the emptiest VMs to leave, but never so many that fewer than `wanted` serve.
    fn choose(&self, excess: usize, wanted: usize, leaving: usize, steps: &mut Vec<Step>) {
        let mut candidates: Vec<&VmStatus> = self
            .serving()
            .filter(|vm| self.may_leave(&vm.id))
            .filter_map(|vm| self.status(&vm.id))
            .collect();
        let ready = candidates.iter().filter(|vm| vm.state == VmState::Ready).count();
        let at_once =
            (f64::from(self.group.desired) * self.leaving_share).floor().max(1.0) as usize;
        // If no more serving VMs may leave, only those that cannot serve may.
        let dead = candidates.len() - ready;
        let count =
            excess.min(at_once.saturating_sub(leaving)).min(dead + ready.saturating_sub(wanted));
        candidates.sort_by_key(|vm| self.fullness(&vm.id));
        let chosen: Vec<VmId> = candidates.iter().take(count).map(|vm| vm.id.clone()).collect();
        if chosen.is_empty() {
            return;
        }
        // In this order: a drain without the missing protection would look like an operator's.
        steps.push(Step::Protect(chosen.clone(), false));
        steps.extend(chosen.into_iter().map(Step::Drain));
    }

    /// Protects every VM that serves and does not leave.
    fn protect(&self, steps: &mut Vec<Step>, mut back: Vec<VmId>) {
        let bare = self.serving().filter(|vm| !vm.protected && !self.draining.contains(&vm.id));
        back.extend(bare.map(|vm| vm.id.clone()));
        if !back.is_empty() {
            steps.push(Step::Protect(back, true));
        }
    }

    fn serving(&self) -> impl Iterator<Item = &GroupInstance> {
        self.group.instances.iter().filter(|vm| vm.phase == Phase::Serving)
    }

    /// The VMs that leave on our order.
    fn leaving(&self) -> Vec<&GroupInstance> {
        self.serving().filter(|vm| !vm.protected && self.draining.contains(&vm.id)).collect()
    }

    /// `since` for the VMs that leave or wait in a lifecycle hook now; their grace period runs.
    pub(crate) fn still_leaving(&self) -> HashMap<VmId, Moment> {
        let waiting = self.group.instances.iter().filter(|vm| vm.phase == Phase::Waiting);
        let all = self.leaving().into_iter().chain(waiting);
        all.map(|vm| (vm.id.clone(), self.since.get(&vm.id).copied().unwrap_or(self.at))).collect()
    }

    /// The VMs that an operator drains.
    fn drained_by_operator(&self) -> impl Iterator<Item = &GroupInstance> {
        self.serving()
            .filter(|vm| self.keeps_marks && vm.protected && self.draining.contains(&vm.id))
    }

    fn may_leave(&self, id: &VmId) -> bool {
        let leaving = self.leaving().iter().any(|vm| vm.id == *id);
        !leaving && (!self.keeps_marks || !self.draining.contains(id))
    }

    fn status(&self, id: &VmId) -> Option<&VmStatus> {
        self.vms.iter().find(|vm| vm.id == *id)
    }

    /// Sort key, emptiest first: VMs that drain or cannot serve, then fewer calls, then fewer warm
    /// instances, then the id.
    fn fullness(&self, id: &VmId) -> (bool, u32, usize, VmId) {
        let (serves, calls, instances) = self.status(id).map_or((false, 0, 0), |vm| {
            let calls = vm.calls_active.saturating_add(vm.calls_waiting);
            (vm.state == VmState::Ready, calls, vm.instances.len())
        });
        (serves, calls, instances, id.clone())
    }
}

#[cfg(test)]
mod tests;
