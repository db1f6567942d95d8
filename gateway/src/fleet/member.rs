//! One VM and its state as the gateway knows it. Everything that a call reads here is an atomic or
//! an `ArcSwap`.

use super::breaker::Breakers;
use super::health::{Event, SharedHealth, Standing};
use super::link::error::LinkError;
use super::load::Load;
use super::view::View;
use super::{breaker, health};
use arc_swap::{ArcSwap, Guard};
use epsilon_api::{
    admin::{VmInfo, VmStanding},
    ids::VmId,
    vm::{Vm, VmState, VmStatus},
};
use epsilon_placement::ring;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

/// When a VM, or a function on it, gets no calls for a while.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HealthPolicy {
    pub(crate) health: health::Policy,
    pub(crate) breaker: breaker::Policy,
    /// How long a new VM gets less than its share.
    pub(crate) slow_start: Duration,
}

impl HealthPolicy {
    pub(crate) fn new(slow_start: Duration) -> Self {
        Self { health: health::Policy::default(), breaker: breaker::Policy::default(), slow_start }
    }
}

#[cfg(test)]
impl Default for HealthPolicy {
    fn default() -> Self {
        Self::new(Duration::from_secs(30))
    }
}

/// One VM of the fleet.
#[derive(Debug)]
pub(crate) struct Member {
    /// Id of the VM.
    pub(crate) id: VmId,
    /// The VM itself: that of this process, or a client of an agent's listener.
    pub(crate) vm: Arc<dyn Vm>,
    /// Address of its listener; `None` for the VM of this process.
    pub(crate) address: Option<String>,
    /// Its weight on the ring, by its memory.
    pub(crate) weight: u32,
    /// Its calls in flight.
    pub(crate) load: Arc<Load>,
    /// Circuit breakers of functions on this VM.
    pub(crate) breakers: Breakers,
    health: SharedHealth,
    /// The operator requested that it drains. It may also drain by its own decision; see
    /// [`Self::takes_calls`].
    drain_requested: AtomicBool,
    /// Its last report.
    view: ArcSwap<View>,
    /// When it joined; `None` if it was in the fleet before this gateway started.
    joined_at: Option<Instant>,
    /// When it joined or its agent restarted; `None` if it was in the fleet before this gateway
    /// started.
    slow_start_since: Mutex<Option<Instant>>,
    /// The last published standing, and since when it holds.
    published_standing: Mutex<(VmStanding, Timestamp)>,
    missed: AtomicU64,
    /// It did not answer the request for reports.
    is_absent: AtomicBool,
    /// Why the last attempt to read its reports failed; `None` after a report.
    cause: Mutex<Option<String>>,
    /// When this gateway learned of it.
    discovered_at: Instant,
}

impl Member {
    /// The VM of this process.
    pub(crate) fn local(vm: Arc<dyn Vm>, health_policy: &HealthPolicy) -> Self {
        let now = Instant::now();
        let view = View::of(&vm.status(), now);
        Self::new(vm, view, SharedHealth::local(now), health_policy, None)
    }

    /// A VM that joined and has not reported yet. `joined_at`: `None` if it was in the fleet before
    /// this gateway started.
    pub(crate) fn joined(
        vm: Arc<dyn Vm>,
        health_policy: &HealthPolicy,
        joined_at: Option<Instant>,
    ) -> Self {
        let now = Instant::now();
        let view = View::never_reported(&vm.status(), now);
        let health = SharedHealth::remote(health_policy.health, now);
        Self::new(vm, view, health, health_policy, joined_at)
    }

    /// Sets the address of its listener.
    pub(crate) fn at(self, address: String) -> Self {
        Self { address: Some(address), ..self }
    }

    fn new(
        vm: Arc<dyn Vm>,
        view: View,
        health: SharedHealth,
        health_policy: &HealthPolicy,
        joined_at: Option<Instant>,
    ) -> Self {
        let member = Self {
            id: view.id.clone(),
            vm,
            address: None,
            weight: ring::weight(view.memory.get()),
            load: Load::new(),
            breakers: Breakers::new(health_policy.breaker),
            health,
            drain_requested: AtomicBool::new(false),
            view: ArcSwap::from_pointee(view),
            joined_at,
            slow_start_since: Mutex::new(joined_at),
            published_standing: Mutex::new((VmStanding::Starting, Timestamp::now())),
            missed: AtomicU64::new(0),
            is_absent: AtomicBool::new(false),
            cause: Mutex::default(),
            discovered_at: Instant::now(),
        };
        member.update_standing(Timestamp::now());
        member
    }

    /// Its last report.
    pub(crate) fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// Takes over a report.
    pub(crate) fn reported(&self, status: VmStatus, now: Instant) {
        let before = self.view();
        if before.has_reported && before.boot != status.boot {
            *self.slow_start_since.lock() = Some(now);
        }
        *self.cause.lock() = None;
        self.load.reported(&status);
        self.view.store(Arc::new(View::of(&status, now)));
        self.note(Event::Report, now);
    }

    /// The stream of its reports ended with this error, or could not be opened.
    pub(crate) fn report_failed(&self, link_error: &LinkError, now: Instant) {
        self.missed.fetch_add(1, Relaxed);
        // A member that does not know this gateway yet will in a moment.
        let is_unauthenticated = matches!(link_error, LinkError::Unauthenticated);
        self.is_absent.store(!is_unauthenticated, Relaxed);
        *self.cause.lock() = Some(link_error.describe());
        self.load.silent();
        self.note(
            if matches!(link_error, LinkError::Refused(_)) {
                Event::Refused
            } else {
                Event::Broken
            },
            now,
        );
    }

    /// Called regularly, so that silence is noticed.
    pub(crate) fn tick(&self, now: Instant) {
        self.note(Event::Tick, now);
        self.update_standing(Timestamp::now());
    }

    /// Records an event in its health, and logs a change.
    pub(crate) fn note(&self, event: Event, now: Instant) {
        let Some((before, after)) = self.health.note(event, now) else { return };
        self.update_standing(Timestamp::now());
        let vm = &self.id;
        match (before, after) {
            (_, Standing::Up) => tracing::info!(%vm, "VM is up; it gets calls."),
            (_, Standing::Suspect) => {
                tracing::warn!(%vm, "VM's report stream broke; it gets calls only if no other VM is free.");
            }
            (_, Standing::Out(why)) => {
                tracing::warn!(%vm, why = why.as_str(), "VM is out; its calls go to other VMs.");
            }
        }
    }

    /// Whether it responds.
    pub(crate) fn standing(&self) -> Standing {
        self.health.standing()
    }

    /// Time since it joined or its agent restarted.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        let since = *self.slow_start_since.lock();
        since.map_or(Duration::MAX, |since| now.saturating_duration_since(since))
    }

    /// The part of its own functions that it has taken over, if a new VM takes them over `within`
    /// this time: from 0 to 1. A restarted agent keeps its functions.
    pub(crate) fn grown(&self, within: Duration, now: Instant) -> f64 {
        match self.joined_at.map(|at| now.saturating_duration_since(at)) {
            Some(age) if age < within => age.as_secs_f64() / within.as_secs_f64(),
            Some(_) | None => 1.0,
        }
    }

    /// Whether it may get calls as far as draining goes: neither the operator nor the VM itself
    /// wants it drained.
    pub(crate) fn takes_calls(&self) -> bool {
        !self.is_drain_requested() && self.view().state != VmState::Draining
    }

    /// Whether the operator requested that it drains.
    pub(crate) fn is_drain_requested(&self) -> bool {
        self.drain_requested.load(Relaxed)
    }

    /// Starts or ends a drain by the operator. Returns whether that is a change.
    pub(crate) fn drain(&self, draining: bool) -> bool {
        let has_changed = self.drain_requested.swap(draining, Relaxed) != draining;
        if has_changed {
            self.vm.drain(draining);
            // The VM of this process reports at once; others with their next report.
            if self.address.is_none() {
                self.reported(self.vm.status(), Instant::now());
            }
            self.update_standing(Timestamp::now());
        }
        has_changed
    }

    /// Its state for the API.
    pub(crate) fn info(&self, now: Instant) -> VmInfo {
        let (standing, since) = self.update_standing(Timestamp::now());
        let view = self.view();
        let age = view.has_reported.then(|| now.saturating_duration_since(view.at).as_millis());
        let reason = match self.standing() {
            Standing::Out(why) if standing == VmStanding::Out => Some(why.as_str().to_owned()),
            Standing::Up | Standing::Suspect | Standing::Out(_) => None,
        };
        let mut status = self.vm.status();
        status.images = Vec::new();
        VmInfo {
            status,
            standing,
            reason,
            cause: self.cause.lock().clone(),
            since,
            address: self.address.clone(),
            report_age_ms: age.map(|age| u64::try_from(age).unwrap_or(u64::MAX)),
            calls_from_here: self.load.own_calls(),
            images_held: view.images_held(),
            reports_missed: self.missed(),
        }
    }

    /// Whether it has reported, or probably will not soon.
    pub(crate) fn is_decided(&self) -> bool {
        self.view().has_reported || self.is_absent.load(Relaxed)
    }

    /// When this gateway learned of it.
    pub(crate) fn discovered_at(&self) -> Instant {
        self.discovered_at
    }

    /// How often its report stream ended or could not be opened.
    pub(crate) fn missed(&self) -> u64 {
        self.missed.load(Relaxed)
    }

    /// The current standing, and since when it holds.
    fn update_standing(&self, now: Timestamp) -> (VmStanding, Timestamp) {
        let view = self.view();
        let standing = match self.standing() {
            _ if !view.has_reported => VmStanding::Starting,
            Standing::Out(_) => VmStanding::Out,
            _ if !self.takes_calls() => VmStanding::Draining,
            Standing::Suspect => VmStanding::Suspect,
            Standing::Up if view.state == VmState::EngineDown => VmStanding::EngineDown,
            Standing::Up => VmStanding::Ready,
        };
        let mut published_standing = self.published_standing.lock();
        if published_standing.0 != standing {
            *published_standing = (standing, now);
        }
        *published_standing
    }
}
