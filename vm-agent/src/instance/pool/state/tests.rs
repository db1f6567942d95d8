//! The pool's state without an engine: what happens, and what follows from it, in words. Calls are
//! named by letters, instances by the order of their starts.

mod calls;
mod ends;
mod failures;
mod starts;
mod timers;

use super::*;
use crate::instance::pool::actions::NoSlot;
use crate::instance::state::Policy;
use crate::keepalive::policy::{Choice, Reason};
use std::{collections::HashMap, time::Duration};

const fn s(seconds: u64) -> Moment {
    Duration::from_secs(seconds)
}

const fn ms(milliseconds: u64) -> Moment {
    Duration::from_millis(milliseconds)
}

fn rules() -> Rules {
    Rules {
        policy: Policy { timeout: s(30), one_call: false },
        concurrency: 1,
        min_instances: 0,
        max_instances: 3,
        starts_at_once: 2,
        queue_depth: 4,
        freeze_after: Some(s(10)),
        idle_default: s(60),
    }
}

fn init() -> StartFailure {
    StartFailure::Init("it throws".into())
}

fn no_capacity() -> StartFailure {
    StartFailure::NoCapacity("the disk is full".into())
}

type Name = &'static str;

struct Pool {
    state: PoolState<Name>,
    now: Moment,
    /// `i1` is the first one.
    instances: Vec<Key>,
    held: HashMap<Name, (Key, u64)>,
    tickets: HashMap<Name, u64>,
}

impl Pool {
    fn new(rules: Rules) -> Self {
        Self {
            state: PoolState::new(rules),
            now: s(100),
            instances: Vec::new(),
            held: HashMap::new(),
            tickets: HashMap::new(),
        }
    }

    /// With this many instances that are ready.
    fn with_instances(count: usize, rules: Rules) -> Self {
        let mut pool = Self::new(rules);
        for _ in 0..count {
            let key = pool.state.adopt(pool.now);
            pool.instances.push(key);
        }
        pool
    }

    fn key(&self, instance: usize) -> Key {
        self.instances[instance - 1]
    }

    fn name(&self, key: Key) -> String {
        let at = self.instances.iter().position(|other| *other == key);
        at.map_or_else(|| format!("unknown {key}"), |at| format!("i{}", at + 1))
    }

    fn later(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self
    }

    fn gets(&mut self, call: Name, slot: Slot) -> String {
        self.held.insert(call, (slot.key, slot.call));
        let mut text = format!("{call} gets {}", self.name(slot.key));
        if slot.was_prewarmed {
            text += ", prewarmed";
        }
        if slot.is_first {
            text += ", alone";
        }
        text
    }

    fn words(&mut self, actions: Actions<Name>) -> Vec<String> {
        let Actions { slots, failures, starts, stops, changed, has_last_call_ended, bad_end } =
            actions;
        let mut words = Vec::new();
        if has_last_call_ended {
            words.push("no call runs".to_owned());
        }
        for (call, slot, phases) in slots {
            let after = if phases.is_some() { ", after its start" } else { "" };
            words.push(self.gets(call, slot) + after);
        }
        words.extend(failures.into_iter().map(|(call, why)| match why {
            NoSlot::Busy => format!("{call} is refused"),
            NoSlot::Start(StartFailure::Init(text) | StartFailure::NoCapacity(text)) => {
                format!("{call} fails: {text}")
            }
            NoSlot::Start(StartFailure::Cancelled) => format!("{call} fails: cancelled"),
        }));
        for key in starts {
            self.instances.push(key);
            words.push(format!("start {}", self.name(key)));
        }
        words.extend(stops.into_iter().map(|key| format!("kill {}", self.name(key))));
        words.extend(changed.into_iter().map(|key| format!("check {}", self.name(key))));
        words.extend(bad_end.map(|end| {
            if end.is_early { "bad end, early".to_owned() } else { "bad end".to_owned() }
        }));
        words
    }

    fn arrives(&mut self, call: Name, may_wait: bool) -> Vec<String> {
        let request_id = RequestId::random();
        if let Some(slot) = self.state.begin(&request_id) {
            return vec![self.gets(call, slot)];
        }
        match self.state.admit(self.now) {
            Err(Refusal::QueueFull) => return vec!["queue is full".into()],
            Err(Refusal::Failed(_)) => return vec!["code is known to fail".into()],
            Ok(()) => {}
        }
        let (ticket, actions) = self.state.enqueue(&request_id, may_wait, call, self.now);
        self.tickets.insert(call, ticket);
        self.words(actions)
    }

    fn call(&mut self, call: Name) -> Vec<String> {
        self.arrives(call, true)
    }

    /// A call that another VM could take.
    fn call_without_wait(&mut self, call: Name) -> Vec<String> {
        self.arrives(call, false)
    }

    fn cancel(&mut self, call: Name) {
        self.state.cancel(self.tickets[call]);
    }

    fn ends(&mut self, call: Name) -> Vec<String> {
        self.ends_with(call, Event::CallEnded)
    }

    fn ends_with(&mut self, call: Name, how: Event) -> Vec<String> {
        let (key, number) = self.held[call];
        let actions = self.state.end(key, number, how, self.now);
        self.words(actions)
    }

    fn event(&mut self, instance: usize, event: Event) -> Vec<String> {
        let actions = self.state.event(self.key(instance), event, self.now);
        self.words(actions)
    }

    fn is_ready(&mut self, instance: usize) -> Vec<String> {
        let actions = self.state.ready(self.key(instance), StartPhases::default(), self.now);
        self.words(actions)
    }

    fn fails(&mut self, instance: usize, failure: &StartFailure) -> Vec<String> {
        let (actions, _) = self.state.start_failed(self.key(instance), failure, self.now);
        self.words(actions)
    }

    fn lacks_memory(&mut self, instance: usize, lacks: bool) -> Vec<String> {
        let actions = self.state.report_memory_wait(self.key(instance), lacks, self.now);
        self.words(actions)
    }

    fn exits(&mut self, instance: usize, is_known: bool) -> (Vec<String>, usize) {
        let (actions, calls) = self.state.exited(self.key(instance), is_known, self.now);
        (self.words(actions), calls.len())
    }

    fn is_gone(&mut self, instance: usize) -> Vec<String> {
        let actions = self.state.gone(self.key(instance), self.now);
        self.words(actions)
    }

    fn start_what_is_needed(&mut self) -> Vec<String> {
        let actions = self.state.start_what_is_needed(self.now);
        self.words(actions)
    }

    fn evict(&mut self, instance: usize) -> Option<Vec<String>> {
        let actions = self.state.evict(self.key(instance), self.now)?;
        Some(self.words(actions))
    }

    fn prewarm(&mut self, until: Moment) -> Vec<String> {
        let actions = self.state.start_prewarm(until, self.now);
        self.words(actions)
    }

    /// The words, when to check again, and the freeze.
    fn tick(
        &mut self,
        instance: usize,
        idle: Duration,
        freezer: Freezer,
    ) -> (Vec<String>, Option<Duration>, Freeze) {
        let choice = Choice { idle, ready: None, why: Reason::Even };
        let check = self.state.tick(self.key(instance), &choice, freezer, self.now);
        let words = self.words(check.actions);
        (words, check.next.map(|next| next - self.now), check.freeze)
    }
}
