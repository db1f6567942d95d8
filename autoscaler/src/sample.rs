//! The VMs' reports as one [`Sample`]: how many places are needed and how many exist. Pure. The
//! runner takes one every second.
//!
//! A *place* is the unit: memory of `place` bytes and `1 / places_per_core` of a core. A VM has as
//! many as both its memory and its cores allow; a busy instance takes as many as its memory needs,
//! at least one. Idle instances take none: the agent stops them when their memory is needed.
//!
//! A call that waits although there is capacity waits for something else (its function's
//! `maxInstances`, a start), and more VMs would not help. So waiting calls count only on full VMs,
//! and only for as many places as the VM has: a queue shows that more is needed, but not how much.

use super::config::Config;
use epsilon_api::{
    units::Bytes,
    vm::{InstanceState, InstanceStatus, VmState, VmStatus},
};

/// The fleet in one second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Places needed: busy instances, and calls that wait for capacity.
    pub demand: f64,
    /// The part of it that waits.
    pub queued: f64,
    /// Places of the VMs that take calls.
    pub places: f64,
    /// The part of them on VMs outside the group.
    pub outside: f64,
    /// Mean places of a VM of the group; 0 if none reports.
    pub vm_places: f64,
    /// VMs of the group that take calls.
    pub ready: u32,
    /// VMs that the group has or has ordered; the wanted count is compared with it.
    pub current: u32,
}

/// One VM, in places.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Load {
    places: f64,
    demand: f64,
    queued: f64,
}

impl Sample {
    /// Combines the VMs' reports. `of_group`: whether the driver may order and terminate a VM;
    /// `memory`: memory of an instance; `current`: number of VMs in the group.
    pub fn of(
        vms: &[VmStatus],
        of_group: impl Fn(&VmStatus) -> bool,
        memory: impl Fn(&InstanceStatus) -> Option<Bytes>,
        current: u32,
        config: &Config,
    ) -> Self {
        let mut sample = Self { current, ..Self::default() };
        for vm in vms {
            let load = load(vm, &memory, config);
            // Also of draining VMs: their calls will move to others.
            sample.demand += load.demand;
            sample.queued += load.queued;
            match (vm.state, of_group(vm)) {
                (VmState::Ready, true) => {
                    sample.places += load.places;
                    sample.vm_places += load.places;
                    sample.ready += 1;
                }
                (VmState::Ready, false) => {
                    sample.places += load.places;
                    sample.outside += load.places;
                }
                (VmState::Draining | VmState::EngineDown, _) => {}
            }
        }
        if sample.ready > 0 {
            sample.vm_places /= f64::from(sample.ready);
        }
        sample
    }
}

fn load(vm: &VmStatus, memory: impl Fn(&InstanceStatus) -> Option<Bytes>, config: &Config) -> Load {
    let place = config.place.get() as f64;
    let by_memory = vm.memory_bytes.get() as f64 / place;
    let by_cores = f64::from(vm.cpu_millicores.0) / 1000.0 * config.places_per_core;
    // If an agent does not report its cores, only memory counts.
    let places = if by_cores > 0.0 { by_memory.min(by_cores) } else { by_memory };

    let takes = |instance: &InstanceStatus| {
        memory(instance).map_or(1.0, |bytes| (bytes.get() as f64 / place).max(1.0))
    };
    let mut busy = 0.0;
    let mut starting = 0.0;
    let mut idle = 0;
    let mut concurrency = 0;
    let mut sizes = 0.0;
    for instance in &vm.instances {
        sizes += takes(instance);
        concurrency += instance.concurrency.max(1);
        match instance.state {
            InstanceState::Starting => starting += takes(instance),
            _ if instance.calls_active > 0 => busy += takes(instance),
            _ => idle += 1,
        }
    }
    let count = vm.instances.len().max(1) as f64;
    let concurrency = f64::from(concurrency.max(1)) / count;
    let size = (sizes / count).max(1.0);
    let waiting = f64::from(vm.calls_waiting) / concurrency.max(1.0) * size;

    let full_by_memory = idle == 0
        && vm.memory_bytes.get().saturating_sub(vm.memory_used_bytes.get()) < config.place.get();
    let full = places - busy - starting < 1.0 || full_by_memory;
    let queued = if full { waiting.min(places) } else { 0.0 };
    // Starting instances are for calls that wait.
    let queued = (queued - starting).max(0.0);
    Load { places, demand: busy + starting + queued, queued }
}

#[cfg(test)]
mod tests;
