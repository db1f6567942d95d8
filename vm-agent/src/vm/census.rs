//! Counts instances, calls and memory of this VM when `/metrics` is read.

use crate::vm::LocalVm;
use epsilon_api::{ids::FunctionName, vm::InstanceState};
use prometheus::Error;
use prometheus::Gauge;
use prometheus::IntGaugeVec;
use prometheus::Opts;
use prometheus::core::Collector;
use prometheus::core::Desc;
use prometheus::proto::MetricFamily;
use std::collections::HashMap;
use std::sync::Weak;
use std::sync::atomic::Ordering;

/// Reads the pools when metrics are gathered.
pub(crate) struct Census {
    vm: Weak<LocalVm>,
    instances: IntGaugeVec,
    cells: IntGaugeVec,
    memory: Gauge,
    memory_used: Gauge,
    engine_up: Gauge,
}

impl Census {
    pub(crate) fn new(vm: Weak<LocalVm>) -> Result<Self, Error> {
        Ok(Self {
            vm,
            instances: IntGaugeVec::new(
                Opts::new("epsilon_instances", "Instances by state."),
                &["function", "state"],
            )?,
            cells: IntGaugeVec::new(
                Opts::new("epsilon_cells", "Booted containers that wait for code, by state."),
                &["state"],
            )?,
            memory: Gauge::new(
                "epsilon_vm_memory_bytes",
                "Memory of all instances together, at most.",
            )?,
            memory_used: Gauge::new(
                "epsilon_vm_memory_used_bytes",
                "Memory granted to instances.",
            )?,
            engine_up: Gauge::new("epsilon_engine_up", "1 while the container engine answers.")?,
        })
    }
}

impl Collector for Census {
    fn desc(&self) -> Vec<&Desc> {
        let mut all = self.instances.desc();
        all.extend(self.cells.desc());
        all.extend(self.memory.desc());
        all.extend(self.memory_used.desc());
        all.extend(self.engine_up.desc());
        all
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(vm) = self.vm.upgrade() else { return Vec::new() };
        self.instances.reset();
        let mut counts: HashMap<(FunctionName, InstanceState), i64> = HashMap::new();
        for instance in vm.pools().iter().flat_map(|pool| pool.statuses()) {
            *counts.entry((instance.function, instance.state)).or_default() += 1;
        }
        for ((function, state), count) in counts {
            self.instances.with_label_values(&[function.as_str(), state.as_str()]).set(count);
        }
        let cells = vm.cells.count();
        for (state, count) in [("ready", cells.ready), ("booting", cells.booting)] {
            self.cells.with_label_values(&[state]).set(count.into());
        }
        self.memory.set(vm.budget.total().get() as f64);
        self.memory_used.set(vm.budget.used().get() as f64);
        self.engine_up.set(f64::from(u8::from(!vm.is_engine_down.load(Ordering::Relaxed))));
        let mut all = self.instances.collect();
        all.extend(self.cells.collect());
        all.extend(self.memory.collect());
        all.extend(self.memory_used.collect());
        all.extend(self.engine_up.collect());
        all
    }
}
