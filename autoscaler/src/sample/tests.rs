//! Reports of VMs and the places that result.

use super::{super::config::Settings, *};
use epsilon_api::{
    ids::{FunctionName, InstanceId, VersionNumber, VmId},
    units::MilliCores,
};
use jiff::Timestamp;

/// A VM of 8 places by memory and by cores.
fn vm(id: &str, instances: Vec<InstanceStatus>) -> VmStatus {
    VmStatus {
        cells: Default::default(),
        keeps: Vec::new(),
        id: VmId::parse(id).unwrap(),
        state: VmState::Ready,
        boot: 1,
        version: None,
        certificate_ends_at: None,
        cpu_millicores: MilliCores(1000),
        memory_bytes: Bytes::mib(2048),
        memory_used_bytes: Bytes::mib(256 * instances.len() as u64),
        calls_active: instances.iter().map(|instance| instance.calls_active).sum(),
        calls_waiting: 0,
        instances,
        images: Vec::new(),
    }
}

fn instance(state: &str, calls_active: u32) -> InstanceStatus {
    InstanceStatus {
        id: InstanceId::random(),
        function: FunctionName::parse("pay").unwrap(),
        version: VersionNumber::FIRST,
        state: serde_json::from_value(state.into()).unwrap(),
        calls_active,
        concurrency: 1,
        started_at: Timestamp::UNIX_EPOCH,
    }
}

fn config() -> Config {
    Config::new(Settings::default()).unwrap()
}

fn sample(vms: &[VmStatus]) -> Sample {
    Sample::of(vms, |_| true, |_| Some(Bytes::mib(256)), vms.len() as u32, &config())
}

#[test]
fn busy_counts_and_idle_does_not() {
    let vms = [vm("a", vec![instance("busy", 1), instance("idle", 0)]), vm("b", vec![])];
    let want = Sample {
        demand: 1.0,
        queued: 0.0,
        places: 16.0,
        outside: 0.0,
        vm_places: 8.0,
        ready: 2,
        current: 2,
    };
    assert_eq!(sample(&vms), want);
}

#[test]
fn memory_and_cores_limit_the_places_of_a_vm() {
    let mut small = vm("a", vec![]);
    small.cpu_millicores = MilliCores(500);
    assert_eq!(sample(&[small.clone()]).places, 4.0);
    small.cpu_millicores = MilliCores(64_000);
    assert_eq!(sample(&[small.clone()]).places, 8.0);
    small.cpu_millicores = MilliCores(0); // not reported
    assert_eq!(sample(&[small]).places, 8.0);
}

#[test]
fn large_instances_take_more_places_and_small_ones_one() {
    let vms = [vm("a", vec![instance("busy", 1)])];
    let demand = |mib| Sample::of(&vms, |_| true, |_| Some(Bytes::mib(mib)), 1, &config()).demand;
    assert_eq!((demand(1024), demand(128)), (4.0, 1.0));
    assert_eq!(Sample::of(&vms, |_| true, |_| None, 1, &config()).demand, 1.0);
}

#[test]
fn many_calls_in_one_instance_are_one_busy_instance() {
    assert_eq!(sample(&[vm("a", vec![instance("busy", 80)])]).demand, 1.0);
}

#[test]
fn waiting_calls_with_free_capacity_need_no_vm() {
    let mut one = vm("a", vec![instance("busy", 1)]);
    one.calls_waiting = 500; // its function has maxInstances: 1
    assert_eq!(sample(&[one]).demand, 1.0);
}

#[test]
fn waiting_calls_on_full_vm_count_to_its_size() {
    let mut full = vm("a", (0..8).map(|_| instance("busy", 1)).collect());
    full.calls_waiting = 3;
    let got = sample(&[full.clone()]);
    assert_eq!((got.demand, got.queued), (11.0, 3.0));
    full.calls_waiting = 500;
    let got = sample(&[full]);
    assert_eq!((got.demand, got.queued), (16.0, 8.0));
}

#[test]
fn waiting_calls_share_the_places_of_an_instance() {
    let mut full = vm("a", (0..8).map(|_| instance("busy", 10)).collect());
    for instance in &mut full.instances {
        instance.concurrency = 10;
    }
    full.calls_waiting = 30;
    assert_eq!(sample(&[full]).demand, 11.0);
}

#[test]
fn memory_that_stays_used_makes_a_vm_full() {
    let mut one = vm("a", vec![instance("busy", 1)]);
    (one.memory_used_bytes, one.calls_waiting) = (one.memory_bytes, 2);
    assert_eq!(sample(&[one.clone()]).demand, 3.0);
    one.instances.push(instance("idle", 0)); // can be stopped
    assert_eq!(sample(&[one]).demand, 1.0);
}

#[test]
fn a_start_is_for_a_call_that_waits() {
    let mut full = vm("a", (0..7).map(|_| instance("busy", 1)).collect());
    full.instances.push(instance("starting", 0));
    full.calls_waiting = 1;
    assert_eq!(sample(&[full]).demand, 8.0);
}

#[test]
fn who_takes_no_calls_has_demand_and_no_places() {
    for state in [VmState::Draining, VmState::EngineDown] {
        let mut out = vm("a", vec![instance("busy", 1)]);
        out.state = state;
        let got = sample(&[out, vm("b", vec![])]);
        assert_eq!((got.demand, got.places, got.ready), (1.0, 8.0, 1));
    }
}

#[test]
fn vms_outside_the_group_offer_places() {
    let mut large = vm("mine", vec![]);
    (large.memory_bytes, large.cpu_millicores) = (Bytes::mib(8192), MilliCores(4000));
    let vms = [large, vm("i-1", vec![])];
    let got = Sample::of(&vms, |vm| vm.id.as_str() == "i-1", |_| None, 1, &config());
    assert_eq!((got.places, got.outside, got.vm_places, got.ready), (40.0, 32.0, 8.0, 1));
}

#[test]
fn no_vm_is_no_division_by_zero() {
    assert_eq!(sample(&[]), Sample::default());
}
