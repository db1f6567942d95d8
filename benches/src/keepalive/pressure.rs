//! A VM with too little memory for all: instances stay until another one needs their memory. The
//! eviction order is by idle time, or by the agent's own value. Functions that are never idle have
//! memory of their own, and are left out.

use super::{
    policies::Outcome,
    trace::{Calls, Function},
};
use epsilon_vm_agent::keepalive::cost::{EvictionClock, Rate, value};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Least recently used.
    Age,
    /// Greedy-Dual.
    Worth,
}

impl Order {
    pub(crate) const ALL: [Self; 2] = [Self::Age, Self::Worth];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Age => "the one idle longest (LRU)",
            Self::Worth => "**the one worth least (Greedy-Dual)**",
        }
    }
}

/// State of one function.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    is_here: bool,
    used: f64,
    clock: f64,
    rate: Rate,
    calls: u64,
    cold: u64,
}

/// Replays the trace on a VM with this many bytes.
pub(crate) fn run(functions: &[Function], order: Order, memory: u64) -> Outcome {
    let mut calls: Vec<(Calls, usize)> = functions
        .iter()
        .enumerate()
        .filter(|(_, function)| !function.is_never_idle())
        .flat_map(|(n, function)| function.calls().map(move |call| (call, n)))
        .collect();
    calls.sort_by(|(a, _), (b, _)| a.at.total_cmp(&b.at));
    let mut known = vec![Known::default(); functions.len()];
    let mut here: Vec<usize> = Vec::new();
    let mut used = 0;
    let mut clock = EvictionClock::default();
    for (call, n) in calls {
        // A cold start evicts until the instance fits, as `vm.rs` does.
        if !known[n].is_here {
            known[n].cold += 1;
            while used + functions[n].memory > memory {
                let Some((at, priority)) = lowest(functions, &known, &here, order, call.at) else {
                    break;
                };
                let gone = here.swap_remove(at);
                known[gone].is_here = false;
                used -= functions[gone].memory;
                clock.note_eviction(priority);
            }
            known[n].is_here = true;
            here.push(n);
            used += functions[n].memory;
        }
        let function = &mut known[n];
        function.calls += call.count;
        function.rate.add(call.count, Duration::from_secs_f64(call.at));
        (function.used, function.clock) = (call.at, clock.now());
    }
    let mut outcome = Outcome::default();
    for (function, known) in functions.iter().zip(&known).filter(|(_, known)| known.calls > 0) {
        outcome.add(function, known.calls, known.cold);
    }
    outcome
}

/// The instance to evict first, and its priority.
fn lowest(
    functions: &[Function],
    known: &[Known],
    here: &[usize],
    order: Order,
    now: f64,
) -> Option<(usize, f64)> {
    let priority = |n: usize| {
        let function = &functions[n];
        let known = &known[n];
        match order {
            Order::Age => known.used,
            Order::Worth => {
                let rate = known.rate.at(Duration::from_secs_f64(now));
                let start = Duration::from_secs_f64(function.loads);
                known.clock + value(rate, start, function.memory, 1)
            }
        }
    };
    let all = here.iter().enumerate().map(|(at, n)| (at, priority(*n)));
    all.min_by(|(_, a), (_, b)| a.total_cmp(b))
}
