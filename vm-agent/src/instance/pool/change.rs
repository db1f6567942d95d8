//! Changes of a pool: the lock, the state's transition, and what follows from it. The function's
//! history is updated under the lock, in the order of the changes; wake-ups, hand-overs and starts
//! come after.

use super::Key;
use super::Pool;
use super::actions::{Actions, Slot};
use super::rules::Rules;
use super::slot::{HeldSlot, QueuedSlot, Reply};
use super::state::PoolState;
use crate::container::failure::StartFailure;
use crate::instance::Instance;
use crate::moment::Moment;
use epsilon_api::{chain::Chain, ids::InstanceId};
use parking_lot::MutexGuard;
use std::{collections::BTreeMap, sync::Arc};

/// What the pool's lock guards: the state, and the instance of each key in it.
pub(super) struct Locked {
    pub(super) state: PoolState<Reply>,
    pub(super) instances: BTreeMap<Key, Arc<Instance>>,
}

impl Locked {
    pub(super) fn new(rules: Rules) -> Self {
        Self { state: PoolState::new(rules), instances: BTreeMap::new() }
    }
}

impl Pool {
    pub(super) fn change(
        self: &Arc<Self>,
        change: impl FnOnce(&mut PoolState<Reply>, Moment) -> Actions<Reply>,
    ) {
        let now = self.context.now();
        let mut locked = self.locked.lock();
        let actions = change(&mut locked.state, now);
        self.carry_out(locked, actions, now);
    }

    /// The same, and removes the pool if it is of no use.
    pub(super) fn change_and_forget(
        self: &Arc<Self>,
        change: impl FnOnce(&mut PoolState<Reply>, Moment) -> Actions<Reply>,
    ) {
        let now = self.context.now();
        let mut locked = self.locked.lock();
        let actions = change(&mut locked.state, now);
        let is_removable = self.is_removable(&locked.state, now);
        self.carry_out(locked, actions, now);
        if is_removable {
            self.host.forget(self);
        }
    }

    /// Accounts for a call that got a slot. Under the lock, in the order in which calls begin and
    /// end.
    pub(super) fn note_begun(&self, slot: Slot) {
        if slot.is_first {
            self.history.call_began(self.context.now());
        }
        if slot.was_prewarmed {
            self.context.metrics.prewarms_used.inc();
        }
    }

    /// Carries out what follows from a change: the history's part and new instances under the lock,
    /// the rest after it is released.
    pub(super) fn carry_out(
        self: &Arc<Self>,
        mut locked: MutexGuard<'_, Locked>,
        actions: Actions<Reply>,
        now: Moment,
    ) {
        let Actions { slots, failures, starts, stops, changed, has_last_call_ended, bad_end } =
            actions;
        if has_last_call_ended {
            self.history.calls_ended(now);
        }
        if let Some(bad_end) = bad_end {
            self.history.ended_badly(now, bad_end.is_early);
        }
        let mut failed_starts = Vec::new();
        let mut started = Vec::new();
        for key in starts {
            match self.new_instance() {
                Ok(instance) => {
                    locked.instances.insert(key, Arc::clone(&instance));
                    started.push((key, instance));
                }
                Err(failure) => failed_starts.push((key, failure)),
            }
        }
        let instance = |key: Key| locked.instances.get(&key).cloned();
        let slots: Vec<_> = slots
            .into_iter()
            .filter_map(|(to, slot, phases)| {
                self.note_begun(slot);
                Some((to, slot, instance(slot.key)?, phases))
            })
            .collect();
        let stops: Vec<_> = stops.into_iter().filter_map(instance).collect();
        let changed: Vec<_> = changed.into_iter().filter_map(instance).collect();
        drop(locked);

        for instance in stops {
            instance.begin_stop();
        }
        for instance in changed {
            instance.changed.notify_one();
        }
        for (to, slot, instance, started) in slots {
            // A call that was cancelled in this moment drops its slot, which frees it.
            let slot = HeldSlot::new(self, instance, slot);
            drop(to.send(Ok(QueuedSlot { slot, started })));
        }
        for (to, why) in failures {
            drop(to.send(Err(why)));
        }
        for (key, instance) in started {
            self.host.start_instance(self, key, instance);
        }
        for (key, failure) in failed_starts {
            self.start_failed(key, &failure);
            self.gone(key);
        }
    }

    fn new_instance(&self) -> Result<Arc<Instance>, StartFailure> {
        let idle = self.context.config.connection_idle;
        let version = Arc::clone(&self.version);
        let made = Instance::new(InstanceId::random(), version, idle, &self.context.closed);
        made.map(Arc::new).map_err(|err| {
            tracing::error!(error = %Chain(&err), function = %self.version.function, "The function's name does not form a container name; no instance is started.");
            StartFailure::from(err)
        })
    }
}
