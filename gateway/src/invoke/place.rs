//! Of an invocation, the choice: which VM. Reads the state of the fleet and sends nothing.
//!
//! A function has a home VM on a consistent-hash ring and a fixed order of VMs from there. Its
//! calls stay at home as long as that VM carries no more than its share, and spread along the order
//! when they must. `docs/routing.md` explains it with a drawing.
//!
//! The rules are pure and in `placement/`; this file applies them to the fleet.

use super::retry::Failure;
use crate::fleet::health::{Event, Standing};
use crate::fleet::link::error::LinkError;
use crate::fleet::load::InFlightGuard;
use crate::fleet::{FunctionWalk, Member, Snapshot};
use crate::observe::placement::PlacementMetrics;
use crate::routes::Route;
use epsilon_api::{error::VmError, function::Isolation, vm::VmState};
use epsilon_placement::bounded_load::{Balance, Totals};
use epsilon_placement::choice::{Candidate, Choice, Locality, Penalty, Prewarm};
use std::sync::Arc;
use tokio::time::Instant;

/// The result of placing a call.
#[derive(Debug)]
pub(crate) struct Placed {
    /// The VM that gets the call.
    pub(crate) member: Arc<Member>,
    /// Counts the call in that VM's load until it is dropped.
    pub(crate) in_flight: InFlightGuard,
    /// Whether a retry on another VM is worthwhile.
    pub(crate) has_other_vm: bool,
    /// The prewarm of a preferred VM to start in the background, if any.
    pub(crate) prewarm: Option<(Prewarm, Arc<Member>)>,
}

/// Chooses a VM for a call of this function, except those already tried. `None` when there is none
/// left.
pub(crate) fn place(
    fleet: &Snapshot,
    route: &Route,
    tried: &[Arc<Member>],
    balance: &Balance,
    metrics: &PlacementMetrics,
) -> Option<Placed> {
    let now = Instant::now();
    let totals = fleet.fleet_totals.fresh(fleet.members(), balance, now);
    let members = fleet.members();
    let candidate_of = |vm: usize| Candidate {
        tried: tried.iter().any(|member| Arc::ptr_eq(member, &members[vm])),
        ..candidate(&members[vm], route, balance, totals, now)
    };
    let FunctionWalk { walk, lacks_image: new_home } =
        fleet.walk(route.home, now, |home| home.view().holds_image(route.key));
    let has_other_vms = totals.vms as usize > tried.len() + 1;
    let choice = epsilon_placement::choice::choose(walk, has_other_vms, candidate_of, |penalty| {
        metrics.passed_over(penalty);
    })?;
    metrics.placed(&choice);
    let Choice { vm, more: has_other_vm, prewarm, .. } = choice;
    let member = Arc::clone(&members[vm]);
    member.breakers.begins(route.key, now);
    let in_flight = member.load.begin_call(route.key);
    // A VM without a first report does not get requests to pull images, either.
    let new_home = new_home.filter(|home| {
        *home != vm && members[*home].takes_calls() && members[*home].standing() == Standing::Up
    });
    let prewarm = prewarm.or(new_home.map(|home| (Prewarm::PullImage, home)));
    let prewarm = prewarm.map(|(prewarm, vm)| (prewarm, Arc::clone(&members[vm])));
    Some(Placed { member, in_flight, has_other_vm, prewarm })
}

/// The state of one VM for one call.
fn candidate(
    member: &Member,
    route: &Route,
    balance: &Balance,
    totals: Totals,
    now: Instant,
) -> Candidate {
    let view = member.view();
    let load = &member.load;
    let spec = &route.version.spec;
    let free = match spec.isolation {
        Isolation::Instance => load.free(route.key, view.warm(route.key), spec.concurrency.get()),
        // With isolation per call, no instance takes a second call.
        Isolation::Call => 0,
    };
    let locality = match free {
        1.. => Locality::Warm,
        0 if view.holds_image(route.key) => Locality::Image,
        0 => Locality::Nothing,
    };
    let can_start = view.state != VmState::EngineDown && load.has_memory(spec.memory);
    // Not `takes_calls`: a VM without a first report counts as out, and so remains the last resort
    // of a gateway that has just started.
    let penalty = if member.is_drain_requested() || view.state == VmState::Draining {
        Penalty::Drain
    } else {
        match member.standing() {
            Standing::Out(_) => Penalty::Out,
            _ if member.breakers.is_open(route.key, now) => Penalty::Breaker,
            _ if load.has_refused(route.key) || (free == 0 && !can_start) => Penalty::Room,
            Standing::Suspect => Penalty::Suspect,
            Standing::Up if !load.is_within(balance, totals) => Penalty::Bound,
            Standing::Up => Penalty::Nothing,
        }
    };
    let load_ratio = if penalty == Penalty::Bound { load.load_ratio() } else { 0 };
    Candidate { penalty, locality, load_ratio, tried: false }
}

/// Records the result of an attempt in the VM's health, breakers and load, for the next calls.
pub(crate) fn record_outcome(member: &Member, route: &Route, err: Option<&VmError>) {
    let now = Instant::now();
    match err.map(Failure::of) {
        None | Some(Failure::Own) => {
            member.note(Event::Answered, now);
            member.breakers.answered(route.key);
        }
        Some(Failure::Crashed) => member.note(Event::Answered, now),
        Some(Failure::Refused) => {
            member.load.refused(route.key);
            // If the VM's own report shows no memory, it is full; otherwise something is wrong with
            // this function there.
            let is_full = member.view().memory_free() < route.version.spec.memory;
            if matches!(err, Some(VmError::NoCapacity { .. })) && !is_full {
                failed(member, route, now);
            }
        }
        Some(Failure::Unsent | Failure::VmLost) => {
            let refused = matches!(err.and_then(LinkError::of), Some(LinkError::Refused(_)));
            member.note(if refused { Event::Refused } else { Event::Failed }, now);
        }
        Some(Failure::Platform) => failed(member, route, now),
    }
}

fn failed(member: &Member, route: &Route, now: Instant) {
    if member.breakers.failed(route.key, now) {
        let function = &route.version.function;
        let vm = &member.id;
        tracing::warn!(%function, %vm, "Function failed repeatedly on this VM; its calls go to other VMs for a while.");
    }
}

#[cfg(test)]
mod tests;
