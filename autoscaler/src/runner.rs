//! The loop: a sample and a decision every second, and from time to time a round in which the
//! leader acts. The only part of the autoscaler with I/O; `policy.rs` and `plan.rs` decide.
//!
//! Inputs: the VMs' reports, the group, the store's drains and lease. Outputs: drains, orders to
//! the group, the journal. Stops at once when its token is cancelled: an interrupted round is
//! continued from the next plan.
//!
//! A round runs concurrently with the samples, so that a slow cloud leaves no gap in the windows.
//! Every gateway samples and decides, so that a new leader knows the last minutes; only the leader
//! queries the group and acts. If the store is unavailable, no gateway knows whether it leads, and
//! none acts; calls are not affected.

use super::{
    config::{Config, Driver},
    driver::{Group, GroupError, ScaleGroup},
    history::Moment,
    journal::{Acted, Journal},
    plan::{PlanInput, Step},
    policy::{Decision, Policy},
    sample::Sample,
    vms::Vms,
};
use epsilon_api::{
    autoscaler::AutoscalerState, chain::Chain, fleet::REPORT, ids::VmId, vm::VmStatus,
};
use epsilon_store::StoreError;
use futures_util::{StreamExt, stream::FuturesUnordered};
use jiff::Timestamp;
use std::{
    collections::{HashMap, HashSet},
    future::Future,
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// Longest wait for the store in a round: it answers in milliseconds or not at all.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);
/// After failures the group is queried less often, down to this interval.
const MAX_INTERVAL: Duration = Duration::from_secs(300);

/// The parts of the loop.
#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) config: Config,
    pub(crate) vms: Arc<dyn Vms>,
    /// `None` without a driver.
    pub(crate) group: Option<Arc<dyn ScaleGroup>>,
    pub(crate) journal: Arc<Journal>,
    /// The wall clock, for schedules and the journal.
    pub(crate) clock: fn() -> Timestamp,
}

/// State passed from one round to the next.
#[derive(Debug, Default)]
struct Memory {
    /// The group's last state.
    group: Option<Group>,
    /// Since when VMs leave or wait in a lifecycle hook.
    since: HashMap<VmId, Moment>,
    /// VMs terminated by this process that may still be marked as draining in the store.
    ended: HashSet<VmId>,
}

impl Runner {
    /// Runs until it is stopped.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let begun = Instant::now();
        let mut policy = Policy::new(&self.config.policy);
        let mut memory = Some(Memory::default());
        let mut group: Option<Group> = None;
        let mut pace = Pace::new(self.config.every);
        let mut ordered = 0;
        let mut rounds = FuturesUnordered::new();
        let mut seconds = interval(REPORT);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            // The stop has priority. A finished round is handled before the next sample, which uses
            // its group.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                // Cancel-safe: the round stays in the set.
                Some(ended) = rounds.next(), if !rounds.is_empty() => {
                    let (left, acted): (Memory, Acted) = ended;
                    pace.ended(begun.elapsed(), &acted);
                    group.clone_from(&left.group);
                    memory = Some(left);
                    self.journal.acted((self.clock)(), acted);
                }
                // Cancel-safe: a tick that was not taken is repeated.
                _ = seconds.tick() => {
                    let at = begun.elapsed();
                    let sample = self.sample(group.as_ref());
                    let decision = policy.decide(at, (self.clock)(), &sample);
                    self.journal.decided((self.clock)(), &decision, &sample);
                    // Scale-out starts a round at once, scale-in waits for the next one.
                    ordered = ordered.min(decision.wanted);
                    let due = pace.due(at) || (decision.wanted > ordered && pace.fine());
                    if let Some(driver) = self.group.as_ref().filter(|_| due)
                        && let Some(memory) = memory.take()
                    {
                        ordered = decision.wanted;
                        rounds.push(self.round(&**driver, decision, at, memory));
                    }
                }
            }
        }
    }

    /// A gateway that does not query the group counts all VMs as its members.
    fn sample(&self, group: Option<&Group>) -> Sample {
        let vms = self.vms.status();
        let of_group = |vm: &VmStatus| {
            group.is_none_or(|group| group.instances.iter().any(|member| member.id == vm.id))
        };
        let seen = u32::try_from(vms.len()).unwrap_or(u32::MAX);
        let current = group.map_or(seen, |group| group.desired);
        Sample::of(&vms, of_group, |instance| self.vms.memory(instance), current, &self.config)
    }

    /// One round. Its memory is returned in any case.
    async fn round(
        &self,
        group: &dyn ScaleGroup,
        decision: Decision,
        at: Moment,
        mut memory: Memory,
    ) -> (Memory, Acted) {
        let Decision { wanted, reason, .. } = decision;
        let mut acted = Acted {
            state: AutoscalerState::Leading,
            wanted,
            reason: reason.to_string(),
            ..Acted::default()
        };
        if let Err(round_error) = self.act(group, wanted, at, &mut memory, &mut acted).await {
            let (state, problem) = match round_error {
                RoundError::NotLeader => (AutoscalerState::Following, None),
                RoundError::Store(err) => (AutoscalerState::StoreAway, Some(("store", err))),
                RoundError::Group(err) => {
                    let text = format!("{}; {}", Chain(&err), err.hint());
                    (AutoscalerState::GroupAway, Some((err.label(), text)))
                }
            };
            (acted.state, acted.problem) = (state, problem);
        }
        (memory, acted)
    }

    async fn act(
        &self,
        group: &dyn ScaleGroup,
        wanted: u32,
        at: Moment,
        memory: &mut Memory,
        acted: &mut Acted,
    ) -> Result<(), RoundError> {
        let led_until = Instant::now() + self.config.lease;
        if !stored(self.vms.lead(self.config.lease)).await? {
            memory.group = None; // only the leader knows its state
            return Err(RoundError::NotLeader);
        }
        let draining: HashSet<VmId> = stored(self.vms.draining()).await?.into_iter().collect();
        let vms = self.vms.status();
        let seen: Vec<VmId> = vms.iter().map(|vm| vm.id.clone()).collect();
        let standing = group.describe(&seen).await?;
        let mut input = PlanInput {
            wanted,
            group: &standing,
            keeps_marks: self.config.driver.keeps_marks(),
            vms: &vms,
            draining: &draining,
            since: std::mem::take(&mut memory.since),
            at,
            grace: self.config.leave_grace,
            leaving_share: self.config.leaving_share,
        };
        input.since = input.still_leaving();
        let steps = input.plan();
        memory.since = input.since;
        if wanted > standing.max {
            let text =
                format!("the group's own maximum is {}; raise it, or lower `max`", standing.max);
            acted.problem = Some(("limit", text));
        }
        let forget = self.forgotten(memory, &standing, &seen);
        memory.group = Some(standing.clone());
        if self.config.dry_run {
            acted.steps = steps.iter().map(|step| format!("would {step}")).collect();
            return Ok(());
        }
        for vm in forget {
            stored(self.vms.drain(&vm, false)).await?;
            memory.ended.remove(&vm);
        }
        for step in steps {
            // The next leader's orders must not overlap with ours.
            if Instant::now() >= led_until {
                return Err(RoundError::NotLeader);
            }
            match self.take(group, &step, memory).await {
                // Logged at debug level, because it is repeated in every round.
                Ok(()) if matches!(step, Step::Heartbeat(_)) => {
                    tracing::debug!(%step, "Lifecycle wait extended.");
                }
                Ok(()) => acted.steps.push(step.to_string()),
                // A VM that cannot be terminated must not block the others.
                Err(RoundError::Group(err @ GroupError::Refused(_))) if step.is_independent() => {
                    tracing::warn!(%step, error = %Chain(&err), "Group of VMs refused a step of the autoscaler; the other steps continue.");
                    acted.problem =
                        Some((err.label(), format!("{step}: {}; {}", Chain(&err), err.hint())));
                }
                Err(round_error) => return Err(round_error),
            }
        }
        Ok(())
    }

    /// One step. Its effect on the group is recorded for the next sample.
    async fn take(
        &self,
        group: &dyn ScaleGroup,
        step: &Step,
        memory: &mut Memory,
    ) -> Result<(), RoundError> {
        let desired = memory.group.as_mut().map(|group| &mut group.desired);
        match step {
            Step::SetDesired(vms) => {
                group.set_desired(*vms).await?;
                if let Some(desired) = desired {
                    *desired = *vms;
                }
            }
            Step::Protect(vms, protected) => group.protect(vms, *protected).await?,
            Step::Drain(vm) => stored(self.vms.drain(vm, true)).await?,
            Step::Undrain(vm) => stored(self.vms.drain(vm, false)).await?,
            Step::Terminate(vm, _) => {
                group.terminate(vm).await?;
                memory.ended.insert(vm.clone());
                if let Some(desired) = desired {
                    *desired = desired.saturating_sub(1);
                }
            }
            Step::Complete(vm, _) => {
                group.complete(vm).await?;
                memory.ended.insert(vm.clone());
            }
            Step::Heartbeat(vm) => group.heartbeat(vm).await?,
        }
        Ok(())
    }

    /// Terminated VMs that the group no longer lists and that send no reports: their drain can be
    /// removed.
    fn forgotten(&self, memory: &Memory, group: &Group, seen: &[VmId]) -> Vec<VmId> {
        let there =
            |vm: &VmId| seen.contains(vm) || group.instances.iter().any(|member| member.id == *vm);
        memory.ended.iter().filter(|vm| !there(vm)).cloned().collect()
    }
}

impl Step {
    /// Whether the following steps can run if this one fails.
    fn is_independent(&self) -> bool {
        match self {
            Self::Terminate(..) | Self::Complete(..) | Self::Heartbeat(_) => true,
            Self::SetDesired(_) | Self::Protect(..) | Self::Drain(_) | Self::Undrain(_) => false,
        }
    }
}

impl Driver {
    /// Whether its protection marks outlive this process.
    fn keeps_marks(&self) -> bool {
        match self {
            Self::AwsAsg { .. } => true,
            Self::None | Self::Exec { .. } => false,
        }
    }
}

/// When the next round is due.
#[derive(Debug)]
struct Pace {
    every: Duration,
    next: Moment,
    failures: u32,
}

impl Pace {
    fn new(every: Duration) -> Self {
        Self { every, next: Duration::ZERO, failures: 0 }
    }

    fn due(&self, at: Moment) -> bool {
        at >= self.next
    }

    fn fine(&self) -> bool {
        self.failures == 0
    }

    fn ended(&mut self, at: Moment, acted: &Acted) {
        use AutoscalerState::{Following, GroupAway, Leading, StoreAway, Watching};
        self.failures = match acted.state {
            StoreAway | GroupAway => self.failures.saturating_add(1),
            Watching | Following | Leading => 0,
        };
        let slower = self.every.saturating_mul(1 << self.failures.saturating_sub(1).min(10));
        self.next = at + slower.min(MAX_INTERVAL.max(self.every));
    }
}

/// Why a round ended early.
enum RoundError {
    NotLeader,
    Store(String),
    Group(GroupError),
}

impl From<GroupError> for RoundError {
    fn from(err: GroupError) -> Self {
        Self::Group(err)
    }
}

/// An answer of the store, within a time limit.
async fn stored<T>(answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, RoundError> {
    let unavailable = |why: String| {
        RoundError::Store(format!(
            "the store does not answer, so the leading gateway is unknown: {why}"
        ))
    };
    match timeout(STORE_TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(err)) => Err(unavailable(Chain(&err).to_string())),
        Err(_) => Err(unavailable(format!("no answer in {STORE_TIMEOUT:?}"))),
    }
}

#[cfg(all(test, feature = "aws"))]
mod moto;
#[cfg(test)]
mod tests;
